"""The reference of the Python API, from signatures and docstrings: read as text, so nothing is imported."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from rela_cli import _HOMES

PACKAGE = Path(__file__).resolve().parent.parent / "rela_cli"
HEAD = """# The API, name by name

From the docstrings. `import rela_cli as rela` gives all of these; [api.md](api.md) shows how they are used together.
Shapes: N samples, B of a batch, D features of a network, k numbers of a target.
"""
SPECIAL = ("__getitem__", "__call__")
PUBLIC = {home.partition(":")[2] or name: name for name, home in _HOMES.items()}  # public names by those in the files
OWN = re.compile(rf"(?<![\w.])({'|'.join(PUBLIC)})(?=[(.])")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def api_reference() -> str:
    """The whole page: each public name in the order of the alphabet, classes with their methods."""
    return "\n".join([HEAD, *(line for name in sorted(_HOMES, key=str.lower) for line in entry(name))]) + "\n"


def entry(name: str) -> Iterator[str]:
    """One name: its signature, what its docstring says, and of a class its public methods and properties."""
    node = definition(name)
    yield f"## rela.{name}\n"
    if isinstance(node, ast.ClassDef):
        start = next((one for one in functions(node) if one.name == "__init__"), None)
        yield code(f"rela.{name}({signature(start) if start else fields(node)})")
        yield prose(ast.get_docstring(node))
        yield prose(ast.get_docstring(start) if start else None)
        for one in functions(node):
            if ast.get_docstring(one) and (one.name in SPECIAL or not one.name.startswith("_")):
                yield from member(one, name)
    else:
        yield code(f"rela.{name}({signature(node)}){returned(node)}")
        yield prose(ast.get_docstring(node))


def member(node: Function, name: str) -> Iterator[str]:
    """A method, or a property, of a class."""
    is_property = any("property" in ast.unparse(one) for one in node.decorator_list)
    yield f"### {name}.{node.name}\n".replace("_", r"\_")
    yield code(f".{node.name}{'' if is_property else f'({signature(node)})'}{returned(node)}")
    yield prose(ast.get_docstring(node))


def definition(name: str) -> ast.ClassDef | Function:
    """The class or function behind a public name, as it stands in its file."""
    home, _, own = _HOMES[name].partition(":")
    tree = ast.parse(PACKAGE.joinpath(*home.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and node.name == (own or name):
            return node
    raise LookupError(f"{home}.py defines no {own or name}")


def functions(node: ast.ClassDef) -> list[Function]:
    """What a class defines itself, in order."""
    return [one for one in node.body if isinstance(one, Function)]


def signature(node: Function) -> str:
    """The arguments without self and cls."""
    return re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args)).replace("=", " = ")


def fields(node: ast.ClassDef) -> str:
    """The arguments of a dataclass; `...` where there are many."""
    found = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
    return ", ".join(found) if len(found) <= 6 else "..."


def returned(node: Function) -> str:
    """` -> type`, where there is one."""
    return f" -> {ast.unparse(node.returns)}" if node.returns else ""


def code(text: str) -> str:
    """A signature as a block; a long one with an argument a line."""
    if len(text) > 64 and "(" in text:
        head, _, rest = text.partition("(")
        inside, _, tail = rest.rpartition(")")
        parts = ",\n    ".join(split_arguments(inside))
        text = f"{head}(\n    {parts},\n){tail}"
    return f"```python\n{text}\n```\n"


def split_arguments(text: str) -> list[str]:
    """Arguments at the commas that no bracket holds."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append(text[start:place].strip())
            start = place + 1
    return [*found, text[start:].strip()]


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: examples become blocks."""
    return "\n\n".join(map(block, re.split(r"\n\s*\n", docstring))) + "\n" if docstring else ""


def block(text: str) -> str:
    """One paragraph; names in examples are the public ones."""
    if text.startswith(">>>"):
        return f"```python\n{OWN.sub(lambda found: f'rela.{PUBLIC[found[1]]}', text)}\n```"
    if text.startswith("Raises:"):
        said = " ".join(textwrap.dedent(text.partition("\n")[2]).split())
        return "Raises: " + re.sub(r"\b([A-Z]\w*Error):", r"`\1`:", said)
    return text
