"""The day of the GPU: lines are kept as they come, a second call goes on, a failing part stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from rela_cli.config.compose import compose
from scripts import gpu_checks, gpu_day
from scripts.gpu_day import Day, Keeper
from tests.conftest import ROOT

Patch = pytest.MonkeyPatch
HERE = json.dumps({"name": "machine", "text": "a card", "is_gpu": True})
FOUND = {"name": "phase 1", "text": "123 pairs/s", "is_speed": True}


def day(out: Path, **more: str) -> Day:
    return Day.of({"OUT": str(out), **more})


def script(monkeypatch: Patch, out: Path, answers: dict[str, list[str] | Exception], **more: str) -> list[list[str]]:
    """A day whose parts answer so; the commands that were run."""
    commands: list[list[str]] = []

    def streamed(command: Sequence[str], seconds: float, log: Path) -> Iterator[str]:
        commands.append(list(command))
        answer = answers.get(command[2] if command[1] != "-c" else "machine", [])
        if isinstance(answer, Exception):
            raise answer
        yield from answer

    monkeypatch.setattr(gpu_day, "streamed", streamed)
    monkeypatch.setattr(os, "environ", {"OUT": str(out), "PARTS": "sanity step", **more})
    return commands


def page_of(out: Path) -> str:
    return (out / "results.md").read_text()


def test_a_second_call_does_not_do_again_what_is_there(tmp_path: Path, monkeypatch: Patch) -> None:
    bad = {"name": "byol", "failed": "RuntimeError: no"}
    answers: dict[str, list[str] | Exception] = {
        "machine": [HERE],
        "step": [json.dumps(FOUND), "noise", json.dumps(bad)],
    }
    commands = script(monkeypatch, tmp_path, answers)
    assert gpu_day.main() == 1
    assert "| phase 1 | 123 pairs/s |" in page_of(tmp_path) and "RuntimeError: no |  | FAILED" in page_of(tmp_path)
    commands.clear()
    answers["step"] = [json.dumps({"name": "byol", "text": "99 pairs/s"})]
    assert gpu_day.main() == 0
    assert [command[2] for command in commands] == ["step"] and commands[0][6] == "phase 1"
    assert (
        "123 pairs/s" in page_of(tmp_path) and "99 pairs/s" in page_of(tmp_path) and "FAILED" not in page_of(tmp_path)
    )


def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path, monkeypatch: Patch) -> None:
    script(
        monkeypatch,
        tmp_path,
        {"machine": [HERE], "sanity": RuntimeError("its time was up"), "step": [json.dumps(FOUND)]},
    )
    assert gpu_day.main() == 1
    assert "its time was up" in page_of(tmp_path) and "123 pairs/s" in page_of(tmp_path)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    Keeper(day(tmp_path)).add("step", dict(FOUND))
    with (tmp_path / "lines.jsonl").open("a") as file:
        file.write('{"part": "step", "na')
    keeper = Keeper(day(tmp_path))
    keeper.add("step", {"name": "byol", "text": "1"})
    assert [line["name"] for line in Keeper(day(tmp_path)).of("step")] == ["phase 1", "byol"]


def test_figures_of_a_rehearsal_never_look_like_a_gpus(tmp_path: Path, monkeypatch: Patch) -> None:
    Keeper(day(tmp_path, SMALL="1")).add("step", dict(FOUND))
    assert "no figure here is one of a GPU" in page_of(tmp_path) and "123" not in page_of(tmp_path)
    real = Keeper(day(tmp_path))
    assert real.done("step") == set(), "a rehearsal counts for nothing on a GPU"
    real.add("sanity", {"name": "views", "text": "0", "ok": True})
    assert "phase 1" not in page_of(tmp_path) and "rehearsal" not in page_of(tmp_path).lower()


def test_without_a_gpu_nothing_is_measured(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = script(
        monkeypatch, tmp_path, {"machine": [json.dumps({"name": "machine", "text": "x", "is_gpu": False})]}
    )
    assert gpu_day.main() == 3 and len(commands) == 1
    assert "SMALL=1 rehearses" in capsys.readouterr().err


def test_a_part_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('one', flush=True); import time; time.sleep(60)"]
    lines = []
    with pytest.raises(RuntimeError, match="its time was up"):
        lines.extend(iter(gpu_day.streamed(command, 1.5, tmp_path / "log.txt")))
    with pytest.raises(RuntimeError, match=r"exit 3; log.txt has the rest: why"):
        list(
            gpu_day.streamed(
                [sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"],
                30,
                tmp_path / "log.txt",
            )
        )


def test_cells_of_table_1(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    asked = day(tmp_path, DATA=str(tmp_path / "data"))
    command = gpu_day.cell(asked, "none 1.0")
    assert command is not None and f"dataset.root={tmp_path / 'data'}" in command and "budget=1.0" in command
    made = compose(command[4:])
    assert (made.epochs, made.batch_size, made.method.name, made.prior.name) == (100, 128, "byol", "none")
    assert made.runtime.step == "auto", "by what its own trial says"
    assert gpu_day.cell(asked, "own 0.5") is None, "its prior is a run that is not there yet"
    teacher = tmp_path / "work" / "runs" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "result.json").write_text("{}")
    assert "prior=rela_run" in (gpu_day.cell(asked, "own 0.5") or [])


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(SystemExit, match="PARTS=speed: the parts are sanity"):
        Day.of({"PARTS": "speed"})


def test_checks_of_a_rehearsal(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of them, in this process, on a GPU's way on the CPU."""
    wanted = {
        "views",
        "step of phase 1",
        "no wait in byol",
        "features of random",
        "targets by whitening",
        "probe lbfgs",
    }
    names = {name for name, _ in gpu_checks.sanity(gpu_checks.Asked("cpu", True, frozenset()))}
    assert wanted < names
    monkeypatch.setattr(sys, "argv", ["", "sanity", "--device", "cpu", "--small", "--skip", ",".join(names - wanted)])
    assert gpu_checks.main() == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["name"] for line in lines} == wanted
    assert all(line["ok"] for line in lines), lines
    assert not torch.Tensor.is_cuda.__get__(torch.zeros(1)), "the way of a GPU has ended"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(2000)
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    """A minute and a half of processor time, and as long as a machine with other work takes for that."""
    whole = {**os.environ, "SMALL": "1", "OUT": str(tmp_path), "PYTHON": sys.executable, "LIMIT": "1500"}
    first, again = rehearsed(whole, 1600), rehearsed(whole, 100)
    assert first.returncode == 0, first.stdout + first.stderr
    text = page_of(tmp_path)
    assert all(title in text for title in gpu_day.TITLES.values())
    assert "FAILED" not in text and "| own 0.1 | ran |" in text
    assert again.returncode == 0 and again.stdout.count("\n") == 1, "nothing is done again"


def rehearsed(environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scripts/gpu_day.sh"], cwd=ROOT, env=environment, timeout=seconds, capture_output=True, text=True
    )
