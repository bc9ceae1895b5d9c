"""Row 10 of docs/reliability.md: going on in a folder that holds another run, by force, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rela_cli.errors import RelaError
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.differences import settings_of
from rela_cli.report.results.collect import collect
from rela_cli.store.locks import RunLock
from rela_cli.training.checkpoint import Checkpoints
from rela_cli.training.trainer import Trainer
from tests.factories import config
from tests.promises.harness import RUN, Killed

Json = dict[str, Any]


def go(tmp_path: Path, *words: str) -> pipeline.Outcome:
    return pipeline.run(config(*RUN, f"paths.outputs={tmp_path / 'outputs'}", *words))


def read(path: Path) -> Json:
    return dict(json.loads(path.read_text()))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder named by hand, with a run that died in step 9."""
    folder = tmp_path / "mine"
    with monkeypatch.context() as dying:
        update = Trainer.update
        dying.setattr(Trainer, "update", lambda self: die() if self.position.step == 9 else update(self))
        with pytest.raises(Killed):
            go(tmp_path, f"paths.run={folder}", "checkpoint.every_seconds=0")
    assert [path.name.split("-")[1] for path in Checkpoints(folder, 0).found()] == ["0000000008", "0000000007"]
    return folder


def die() -> None:
    raise Killed


def test_another_config_is_refused_with_the_difference(tmp_path: Path, mine: Path) -> None:
    before = sorted(mine.iterdir()), (mine / "manifest.json").read_text()
    with pytest.raises(RelaError) as refused:
        go(tmp_path, f"paths.run={mine}", "optimizer.lr=0.01", "seed=3", "runtime.block_size=7", "probe.knn_k=3")
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{mine} holds another run; it differs in"
    assert sorted(lines[1:3]) == ["  optimizer.lr: 0.001 there, 0.01 here", "  seed: 0 there, 3 here"]
    assert lines[3:] == [lines[-1]] and "resume=force" in lines[-1] and "resume=never" in lines[-1]
    assert (sorted(mine.iterdir()), (mine / "manifest.json").read_text()) == before


def test_single_keys_that_count_are_named(tmp_path: Path, mine: Path) -> None:
    words = ("accumulate=2", "runtime.norm=2", "runtime.devices=2", "runtime.gradient_hook=bf16")
    with pytest.raises(RelaError) as refused:
        go(tmp_path, f"paths.run={mine}", *words)
    assert sorted(str(refused.value).splitlines()[1:-1]) == [
        "  accumulate: 1 there, 2 here",
        "  runtime.gradient_hook: none there, bf16 here",
        "  runtime.norm: global there, 2 here",
    ]
    assert settings_of({}, ())["runtime.gradient_hook"] == "none", "of a run from before there was such a key"


def test_what_is_no_key_is_named_too(tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.pipeline import run

    monkeypatch.setitem(run.VERSIONS, "images", 99)
    with pytest.raises(RelaError, match=r"inputs\.images: [0-9a-f]{16} there, [0-9a-f]{16} here"):
        go(tmp_path, f"paths.run={mine}")


def test_the_same_config_goes_on(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path, f"paths.run={mine}", "runtime.block_size=7", "probe.knn_k=3")
    assert "resumed at step 8 of 24" in capsys.readouterr().out
    assert "forced" not in read(mine / "manifest.json")


def test_force_goes_on_and_writes_it_down(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(mine / "manifest.json")["hash"]
    words = (f"paths.run={mine}", "optimizer.lr=0.01", "epochs=4")
    assert go(tmp_path, *words, "resume=force").status == "run"
    assert "resumed at step 8 of 16" in capsys.readouterr().out
    manifest = read(mine / "manifest.json")
    assert manifest["hash"] != before
    assert [entry["changed"] for entry in manifest["forced"]] == [{"optimizer.lr": [0.001, 0.01], "epochs": [6, 4]}]
    assert [entry["step"] for entry in manifest["resumes"]] == [8]
    last = json.loads((mine / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["lr"]) == (16, 0.01)
    assert go(tmp_path, *words).status == "found", "it is that run now"


def test_force_needs_a_checkpoint(tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path, f"paths.run={mine}")
    before = {path.name: path.stat().st_mtime_ns for path in mine.iterdir()}
    monkeypatch.setattr(pipeline.Pipeline, "execute", lambda *_: pytest.fail("it has started to work"))
    with pytest.raises(RelaError, match=r"no checkpoint to go on from.* checkpoint\.keep=true.* resume=never"):
        go(tmp_path, f"paths.run={mine}", "seed=1", "resume=force")
    assert {path.name: path.stat().st_mtime_ns for path in mine.iterdir()} == before


def test_force_that_fails_before_its_first_checkpoint_changes_nothing(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the folder would be neither run: the original command is refused, and its own has nothing to show."""
    kept = {
        path.name: path.read_bytes() for path in mine.iterdir() if path.suffix in (".json", ".yaml", ".safetensors")
    }
    with monkeypatch.context() as dying:
        dying.setattr(Trainer, "update", lambda _: die())
        with pytest.raises(Killed):
            go(tmp_path, f"paths.run={mine}", "optimizer.lr=0.01", "resume=force")
    assert f"{mine} stays the run that it was" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in mine.iterdir() if path.name in kept} == kept
    assert go(tmp_path, f"paths.run={mine}").status == "run"
    assert "resumed at step 8 of 24" in capsys.readouterr().out
    assert "forced" not in read(mine / "manifest.json")


def test_a_finished_run_that_keeps_its_checkpoint_is_prolonged(
    tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path, f"paths.run={mine}", "checkpoint.keep=true")
    assert go(tmp_path, f"paths.run={mine}", "epochs=8", "resume=force").status == "run"
    assert "resumed at step 24 of 32" in capsys.readouterr().out
    manifest, result = read(mine / "manifest.json"), read(mine / "result.json")
    assert (manifest["status"], result["steps"], result["epochs"]) == ("finished", 32, 8)
    assert [entry["changed"] for entry in manifest["forced"]] == [{"epochs": [6, 8]}]


def test_never_sets_aside_and_starts_again(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path, f"paths.run={mine}", "seed=1", "resume=never")
    out = capsys.readouterr().out
    assert f"set aside: {mine}.old-1" in out and "resumed" not in out
    assert len(list(Path(f"{mine}.old-1").glob("checkpoint-*"))) == 2
    assert read(mine / "result.json")["seed"] == 1
    go(tmp_path, f"paths.run={mine}", "resume=never")
    assert read(Path(f"{mine}.old-2") / "result.json")["seed"] == 1
    assert read(mine / "result.json")["seed"] == 0


def test_what_was_set_aside_is_in_no_table(tmp_path: Path) -> None:
    first = go(tmp_path)
    go(tmp_path, "resume=never")
    assert first.folder is not None
    assert (Path(f"{first.folder}.old-1") / "result.json").exists()
    assert [Path(r["path"]).name for r in collect([tmp_path / "outputs"])] == [first.folder.name]
    (first.folder / "result.json").unlink()
    with pytest.raises(RelaError, match=r"no result\.json found"):
        collect([tmp_path / "outputs"])


def test_a_folder_in_use_is_not_set_aside(tmp_path: Path, mine: Path) -> None:
    with RunLock(mine), pytest.raises(RelaError, match="is in use by process"):
        go(tmp_path, f"paths.run={mine}", "resume=never")
    assert not list(tmp_path.glob("mine.old-*"))


def test_a_folder_that_is_no_run_is_left_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    go(tmp_path, f"paths.run={tmp_path / 'home'}", "resume=never")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_the_last_checkpoint_can_be_kept(tmp_path: Path) -> None:
    folder = go(tmp_path, "checkpoint.keep=true").folder
    assert folder is not None
    steps = [int(path.name.split("-")[1]) for path in Checkpoints(folder, 0).found()]
    assert steps == [24, 13], "the end of phase 2, and of phase 1"


@pytest.mark.parametrize("words", [("resume=sometimes",), ("checkpoint.every_seconds=-1",), ("on_collapse=panic",)])
def test_values_that_cannot_be_meant(words: tuple[str, ...]) -> None:
    with pytest.raises(RelaError, match=words[0].replace(".", r"\.")):
        config(*RUN, *words)


def test_none_of_it_is_part_of_a_runs_name(tmp_path: Path) -> None:
    from rela_cli.pipeline.run import Run

    words = ("resume=force", "on_collapse=stop", "checkpoint.every_seconds=1", "checkpoint.keep=true")
    assert Run(config(*RUN, *words)).hash == Run(config(*RUN)).hash
