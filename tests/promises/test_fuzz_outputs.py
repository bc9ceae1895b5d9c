"""Rubbish under outputs/: every command goes on, names what it cannot use, and shows no other number in its place."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from rela_cli import cli
from rela_cli.errors import RelaError
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.to_do import stage_states
from rela_cli.store.notices import warn_once
from tests.factories import config
from tests.promises.helpers import WORDS, go
from tests.promises.test_fuzz import FACTOR, FUZZ_FROM, damaged

COUNT = 10
FILES = ("manifest.json", "result.json", "metrics.jsonl", "switch.jsonl", "config.yaml")
COMMANDS = ("ls", "show s0", "clean --dry-run --unused --finished --resumable", "table --cost")
DRAWN = ("plot --out=plots", "report --no-neighbours --out=r.html")  # these take a second: every tenth time


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    for seed in (0, 1):
        go(outputs, *WORDS, f"seed={seed}")
    return outputs


def said(command: str) -> tuple[int, str, str]:
    warn_once.cache_clear()
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.main(command.split())
    return status, out.getvalue(), err.getvalue()


def scores() -> dict[str, Any]:
    """The numbers of a table by column and seeds."""
    status, out, _ = said("table --format=json")
    return {f"{row['kind']} {row['seeds']}": row["mean"] for row in json.loads(out)} if status == 0 else {}


def spoil(source: random.Random, outputs: Path) -> Path:
    """One file of a run or of the cache, damaged."""
    places = [path for path in sorted(outputs.rglob("*")) if path.name in FILES and not path.parent.is_symlink()]
    path = source.choice(places)
    path.write_bytes(damaged(source, path.read_bytes()))
    return path


def test_any_damage_under_outputs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No unexpected error, and no number that was not there before."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "outputs", symlinks=True)
    known = {json.dumps(value) for value in scores().values()}
    for seed in ("0", "1"):
        shutil.move("outputs", "whole") if not Path("whole").exists() else None
        one = next(path for path in Path("whole/runs").glob(f"fake*-s{seed}-*"))
        shutil.copytree(one, f"outputs/runs/{one.name}")
        known |= {json.dumps(value) for value in scores().values()}
        shutil.rmtree("outputs")
    for seed in range(FUZZ_FROM, FUZZ_FROM + COUNT * FACTOR):
        source = random.Random(seed)
        shutil.copytree("whole", "outputs", symlinks=True)
        path = spoil(source, Path("outputs"))
        for command in (*COMMANDS, *(DRAWN if seed % 10 == 0 else ())):
            status, _, err = said(command)
            assert status in (0, 1, 3) and "unexpected error" not in err, f"seed {seed}, {path}: {command}: {err}"
        found = {json.dumps(value) for value in scores().values()}
        assert found <= known, f"seed {seed}, {path}: {found - known}"
        with redirect_stderr(StringIO()):
            try:
                stage_states(Run(config(*WORDS, "seed=0", "paths.outputs=outputs")), "probe")
            except RelaError as error:
                assert "outputs" in str(error), f"seed {seed}, {path}: {error}"
        shutil.rmtree("outputs")
