"""The house has floors: an import goes down, never up. Read from the source, so nothing has to run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rela_cli.config.schema import CONF_DIR

PACKAGE = Path(__file__).parent.parent / "rela_cli"
PARTS = {"data", "priors", "transports", "learners", "methods", "matching", "switch", "representation"}
FLOORS: list[set[str]] = [
    {"__init__", "errors", "redact", "progress", "hashing", "terminal", "sealed", "arguments", "pulse"},
    {"ranks", "collectives"},
    {"config", "called"},
    {"faults", "owner"},
    {
        "artifacts",
        "memory",
        "runtime",
        "precision",
        "norm",
        "signals",
        "launch",
        "rows",
        "threads",
        "blocks",
        "abreast",
        "gram",
        "optim",
        "logistic",
        "streams",
        "parts",
        "kinds",
        "older",
        "weights",
        "model_folder",
        "onnx_file",
        "network",
    },
    PARTS,
    {"checkpoint", "seen"},
    {"stages", "logger"},
    {"runs", "inventory"},
    {"screen", "space", "footprint"},
    {"enough"},
    {"pipeline"},
    {"cells", "slurm", "together"},
    {"commandline", "text", "without_effect", "loader", "lent", "composer", "job", "sweep", "rank_line"},
    {"neighbours"},
    {"plan"},
    {"listing", "ls", "show", "clean", "doctor", "check", "pack", "fetch", "rank", "replay", "reporting", "planning"},
    {"data_command"},
    {"reproduce", "bench"},
    {"completion"},
    {"cli"},
    {"__main__"},
]
BESIDE = {
    "report": {
        "report",
        "artifacts",
        "called",
        "config",
        "errors",
        "older",
        "sealed",
        "terminal",
        "arguments",
        "__init__",
    }
}  # reads what runs have left, no more
LIGHT = {
    "arguments",
    "called",
    "cells",
    "check",
    "clean",
    "cli",
    "commandline",
    "completion",
    "composer",
    "config",
    "data_command",
    "doctor",
    "errors",
    "fetch",
    "hashing",
    "job",
    "kinds",
    "inventory",
    "launch",
    "lent",
    "listing",
    "loader",
    "model_folder",
    "memory",
    "neighbours",
    "older",
    "ls",
    "owner",
    "network",
    "pack",
    "pipeline",
    "plan",
    "planning",
    "progress",
    "pulse",
    "rank",
    "rank_line",
    "seen",
    "ranks",
    "redact",
    "replay",
    "reproduce",
    "reporting",
    "runs",
    "screen",
    "sealed",
    "show",
    "signals",
    "slurm",
    "space",
    "text",
    "report",
    "sweep",
    "terminal",
    "weights",
    "without_effect",
}
HEAVY = {"torch", "torchvision", "timm", "open_clip", "lightly", "wandb"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def label(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path, lazy: bool = True) -> Iterator[tuple[str, str]]:
    """(module, name) pairs; those for type checkers only are left out, those inside functions if not `lazy`."""

    def visit(node: ast.AST) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(path.read_text()))


def rooms_used(path: Path, lazy: bool = True) -> set[str]:
    """The modules and packages of ours that a file imports, by their names right below rela_cli."""
    found = set()
    for module, name in imports(path, lazy):
        package, _, rest = module.partition(".")
        if package != "rela_cli":
            continue
        submodule = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
        found.add(rest.partition(".")[0] if rest else name if submodule else "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room in BESIDE:
        assert rooms_used(path) <= BESIDE[room]
        return
    above = {used for used in rooms_used(path) if used not in BESIDE and floor_of(used) > floor_of(room)}
    assert not above, f"{room} imports {above} from above"
    if used := rooms_used(path) & set(BESIDE):
        assert floor_of(room) >= floor_of("sweep"), f"{room} imports {used}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "stages").glob("*.py")), ids=label)
def test_a_stage_never_imports_a_stage(path: Path) -> None:
    assert "stages" not in rooms_used(path)


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in LIGHT], ids=label)
def test_light_modules_bring_in_nothing_heavy(path: Path) -> None:
    lazy = room_of(path) == "report"  # there not even inside a function
    assert not {module.partition(".")[0] for module, _ in imports(path, lazy)} & HEAVY


def test_the_command_line_needs_the_standard_library_only() -> None:
    assert rooms_used(PACKAGE / "cli.py", lazy=False) <= {"__init__", "errors", "terminal"}
    outside = {module.partition(".")[0] for module, _ in imports(PACKAGE / "cli.py", lazy=False)}
    assert not outside & {"hydra", "omegaconf", "yaml", "rich"}


def test_a_part_never_sees_the_config_tree() -> None:
    """Checked for the modules that the yamls name."""
    targets = [yaml.safe_load(path.read_text()).get("_target_") for path in CONF_DIR.glob("*/*.yaml")]
    modules = {target.rpartition(".")[0] for target in targets if target}
    assert len(modules) > 10
    for module in modules:
        path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        assert ("rela_cli.config.schema", "Config") not in set(imports(path)), module


def test_no_circles() -> None:
    """Between modules, at import time."""
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES}
    graph = {
        names[path]: {name for module, part in imports(path, lazy=False) for name in (module, f"{module}.{part}")}
        & set(names.values())
        for path in MODULES
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path, name))}"
        if name not in done:
            for used in graph[name]:
                walk(used, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())
