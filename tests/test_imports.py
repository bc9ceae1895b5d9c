"""What must start without torch, so that help and config errors are instant.

Which folder may import which is held by `lint-imports` (`make lint`); its contracts stand in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import yaml

from rela_cli.config.schema import CONF_DIR
from tests.conftest import NO_TORCH, ROOT

FOLDERS = ("commands", "config", "launch", "pipeline", "report", "store", "weights")
HEAVY = (
    "commands/bench/",
    "commands/convert/writer",
    "commands/embed/features",
    "commands/embed/images",
    "commands/embed/network",
    "pipeline/counting",
    "pipeline/enough_memory",
    "pipeline/footprint",
    "store/blocks",
    "store/row_file",
)
SINGLE = (
    "cli",
    "errors",
    "terminal",
    "distributed/pulse",
    "distributed/ranks",
    "machine/memory",
    "machine/network",
    "machine/progress",
    "machine/signals",
    "numerics/integer_hash",
)


def light_modules() -> list[str]:
    package = ROOT / "rela_cli"
    found = [
        path.relative_to(package).with_suffix("") for folder in FOLDERS for path in (package / folder).rglob("*.py")
    ]
    return [*SINGLE, *sorted(str(path) for path in found if not str(path).startswith(HEAVY))]


def python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_what_computes_nothing_starts_without_torch() -> None:
    """Every such module is imported in one process, in which importing torch raises."""
    names = [f"rela_cli.{path.replace('/', '.')}".removesuffix(".__init__") for path in light_modules()]
    assert len(names) > 90
    done = python(f"{NO_TORCH}\nimport importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_a_part_never_sees_the_config_tree() -> None:
    """A part takes plain keywords. Checked for the modules that the yaml files name."""
    targets = [yaml.safe_load(path.read_text()).get("_target_") for path in CONF_DIR.glob("*/*.yaml")]
    modules = {target.rpartition(".")[0] for target in targets if target}
    assert len(modules) > 10
    for module in modules:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert not re.search(r"from rela_cli\.config\.schema import [^)\n]*\bConfig\b", source), module
