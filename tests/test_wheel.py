"""A built wheel works in another folder, with its own copy of conf/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rela_cli.weights.run_folder import EMBEDDED
from tests.conftest import ROOT

SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "rela_cli", "conf")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build writes beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(source, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", ".")
    return next((source / "dist").glob("rela_cli-*.whl"))


def run(cwd: Path, *words: str, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_ships_the_pages_style(wheel: Path) -> None:
    assert "rela_cli/report/page/page.css" in zipfile.ZipFile(wheel).namelist()


def test_wheel_ships_every_yaml(wheel: Path) -> None:
    shipped = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"rela_cli/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {f"rela_cli/weights/embedded/{path.name}" for path in EMBEDDED.iterdir()}
    assert wanted <= shipped
    assert any(name.endswith("backbone.safetensors") for name in wanted)
    assert "rela = rela_cli.cli:main" in zipfile.ZipFile(wheel).read(entry_points(shipped)).decode()
    assert not [name for name in shipped if name.startswith(("tests/", "outputs/"))]


def entry_points(names: set[str]) -> str:
    return next(name for name in names if name.endswith("entry_points.txt"))


def test_wheel_runs_elsewhere(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile")
    run(elsewhere, "-m", "pip", "install", *quiet, "--target", str(site), str(wheel))
    home = run(elsewhere, "-c", "import rela_cli.config.schema as c; print(c.CONF_DIR)", path=site).strip()
    assert Path(home) == site / "rela_cli" / "conf"
    shown = run(elsewhere, "-m", "rela_cli", "train", "--cfg", "job", "+budget=0.5", "prior=random", path=site)
    assert "budget: 0.5" in shown
    assert "rela_cli.priors.random.RandomResNet" in shown
    assert "random" in run(elsewhere, "-m", "rela_cli", "list", "priors", path=site)
    assert list(elsewhere.iterdir()) == []


def test_version_is_said_in_one_place() -> None:
    import rela_cli

    text = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in text
    assert f"version: {rela_cli.__version__}\n" in (ROOT / "CITATION.cff").read_text()
