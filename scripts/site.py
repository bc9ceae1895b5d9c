"""The pages of the site from README.md, docs/ and conf/: `make docs`.

README.md becomes the first page; pages of the top folder stand beside those of docs/. The reference of settings is made
from conf/ and from the schema that checks them, that of the API from its docstrings. The pages go to build/pages, the
site to build/site.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml

from rela_cli.config import runtime, schema
from rela_cli.config.options import OPTIONS as PART_OPTIONS
from scripts.site_api import api_reference

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "pages"
TOP = ("ARCHITECTURE.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
OPTIONS = {
    "logger": runtime.Logger,
    "matching": schema.MatchingSettings,
    "probe": schema.Probe,
    "runtime": runtime.Runtime,
}


def main() -> int:
    """Write all pages; 1 if a link leads nowhere."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for name in TOP:
        shutil.copy(ROOT / name, PAGES / name)
    shutil.copy(ROOT / "README.md", PAGES / "index.md")
    shutil.copytree(ROOT / "examples", PAGES / "examples")
    (PAGES / "reference.md").write_text(reference(), encoding="utf-8")
    (PAGES / "api-reference.md").write_text(api_reference(), encoding="utf-8")
    broken = [problem for page in sorted(PAGES.rglob("*.md")) for problem in relinked(page)]
    for problem in broken:
        print(f"docs: {problem}", file=sys.stderr)
    return bool(broken)


def relinked(page: Path) -> list[str]:
    """Make a page's links those of the site; the ones that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    page.write_text(LINK.sub(lambda found: f"]({target(found[1])}{found[2] or ''})", text), encoding="utf-8")
    named = [target(found[1]) for found in LINK.finditer(text)]
    return [f"{page.name}: {name} is not there" for name in named if not (page.parent / name).exists()]


def target(link: str) -> str:
    """A link between files of the repository as a link between pages, which lie side by side."""
    if link.startswith("../../"):  # from a folder of examples/
        return link.replace("../../docs/", "../../", 1)
    name = link.removeprefix("../").removeprefix("docs/")
    return "index.md" if name == "README.md" else name


# ------------------------------------------------------------------------------------------------------------ reference


def reference() -> str:
    """Every group with its choices, their keys and defaults, and what the keys may hold."""
    parts = [
        "# Every setting\n",
        "Settings are `key=value` on the command line. `group=choice` takes a file of `conf/group/`; each key of the "
        "file is then `group.key`. `rela train --cfg job` prints the config of a run.\n",
        "## Keys of a run\n",
        yaml_block(schema.CONF_DIR / "rela.yaml", until="hydra:"),
        table(schema.Config),
    ]
    for group in schema.GROUPS:
        parts += [f"## {group}\n", *choices(group)]
    return "\n".join(parts)


def choices(group: str) -> Iterator[str]:
    """A group's files, each with the comment at its head as text, then what the keys may hold."""
    for path in sorted((schema.CONF_DIR / group).glob("*.yaml")):
        yield f"### {group}={path.stem}\n"
        yield yaml_block(path)
    options = OPTIONS.get(group) or PART_OPTIONS.get(group)
    if options:
        yield f"### What the keys of {group} may hold\n"
        yield table(options)


def yaml_block(path: Path, until: str = "") -> str:
    """A yaml with its comments."""
    text = path.read_text(encoding="utf-8")
    text = text.partition(f"\n{until}")[0] if until else text
    yaml.safe_load(text)  # one that is no YAML is no reference
    return f"```yaml\n{text.rstrip()}\n```\n"


def table(options: type) -> str:
    """The keys of a dataclass of the schema whose values have a type and bounds."""
    hints = typing.get_type_hints(options, include_extras=True)
    fields = [field.name for field in dataclasses.fields(options)]
    rows = [f"| `{name}` | {allowed(hints[name])} |" for name in fields if allowed(hints[name])]
    return "\n".join(["| key | allowed |", "| --- | --- |", *rows, ""]) if rows else ""


def allowed(hint: Any) -> str:
    """What a key may hold, in words; empty for groups."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return f"{allowed(arguments[0])}; or null"
    if origin is Annotated:
        kind = allowed(arguments[0])
        bounds = bounded(arguments[1])
        return bounds if kind == "text" or not kind else f"{kind}, {bounds}"
    if origin is tuple:
        return f"a list: {allowed(arguments[0])}"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, "")


def bounded(rule: Any) -> str:
    """What a rule of the schema says of a value that breaks it."""
    for wrong in (float("nan"), ""):
        try:
            complaint = rule.complaint(wrong)
        except TypeError:
            continue
        if complaint:
            return str(complaint).removeprefix("must be ")
    return ""


if __name__ == "__main__":
    sys.exit(main())
