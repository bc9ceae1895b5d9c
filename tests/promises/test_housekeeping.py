"""`rela ls`, `rela show` and `rela clean`: what is there, who needs it, and nothing is lost without a word."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from rela_cli.commands import clean, ls, show
from rela_cli.errors import MissingError
from rela_cli.store.entries import Entry
from rela_cli.store.files import read_json, write_json
from rela_cli.store.locks import RunLock
from tests.conftest import NO_TORCH, Rela
from tests.promises.helpers import WORDS, flip, go, only, python, remount, small_disk, wait_until

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs that share their features; one of them is then said to be stopped."""
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    for seed in (0, 1):
        go(outputs, *WORDS, f"seed={seed}")
    go(outputs, *WORDS, "prior.seed=9", until="extract")
    return outputs


@pytest.fixture
def outputs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "outputs", symlinks=True))


def set_status(run: Path, status: str) -> None:
    write_json(run / "manifest.json", {**(read_json(run / "manifest.json") or {}), "status": status})


def run_of(outputs: Path, seed: int) -> Path:
    return only(outputs / "runs", f"fake-*-s{seed}-*")


def entries(outputs: Path, kind: str) -> list[Path]:
    return sorted((outputs / "cache" / kind).glob("????????????????"))


def listed(outputs: Path, capsys: Capture) -> dict[str, list[dict[str, object]]]:
    capsys.readouterr()
    assert ls.main([f"paths.outputs={outputs}", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


# -------------------------------------------------------------------------------------------------------------- looking


def test_ls_without_torch(rela: Rela, outputs: Path) -> None:
    done = rela("ls", stub=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert "runs  2, " in done.stdout and "cache  4 entries" in done.stdout
    assert done.stdout.count("  finished ") == 2
    assert done.stdout.count("used by 2 runs (2 finished)") == 3, "images, features, targets"
    assert done.stdout.count("used by no run") == 1, "the features of another prior"
    assert len(re.findall(r"^  finished .* kB  20\d\d-\d\d-\d\d \d\d:\d\d  fake-", done.stdout, re.MULTILINE)) == 2


def test_ls_sums_baselines(outputs: Path, capsys: Capture) -> None:
    """Whole ones are one line, a damaged one stands by itself, and --all lists each."""
    spec = {"images": entries(outputs, "images")[0].name}
    for name, of in (("a" * 16, spec), ("b" * 16, spec), ("c" * 16, {"images": "gone"})):
        folder = outputs / "cache" / "baselines" / name
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", {"kind": "baselines", "spec": of, "files": {}})
    (outputs / "cache" / "baselines" / ("d" * 16)).mkdir()
    size = sum(path.stat().st_size for path in outputs.glob("cache/baselines/[abc]*/*"))
    assert ls.main([f"paths.outputs={outputs}"]) == 0
    summed, each = capsys.readouterr().out.splitlines(), f"baselines/{'a' * 16}"
    assert (
        "  whole         1 kB" + 20 * " " + "baselines, 3 entries, 1 of them used by no run (--all lists each)"
        in summed
    )
    assert size < 1000 and not any(each in line for line in summed)
    assert [line.split()[0] for line in summed if f"baselines/{'d' * 16}" in line] == ["damaged"]
    assert ls.main([f"paths.outputs={outputs}", "--all"]) == 0
    every = capsys.readouterr().out
    assert each in every and "lists each" not in every


def test_show_has_what_a_number_is_compared_with_and_its_cost(outputs: Path) -> None:
    run = run_of(outputs, 0)
    result = {
        "probe": {"lbfgs": {"top1": 0.5}, "knn": {"top1": 0.25}},
        "baselines": {"untrained": {"lbfgs": {"top1": 0.4}}, "prior_alone": {"lbfgs": {"top1": 0.963}, "knn": "?"}},
        "seconds": {"extract": 1.25, "train": 7.5, "probe": None},
        "flops": {"extract": 10**9, "train": 13 * 10**10},
    }
    write_json(run / "result.json", result)
    text = shown("s0", outputs)
    assert "top-1      50.0 %  lbfgs  (untrained 40.0, prior alone 96.3)\n" in text
    assert "top-1      25.0 %  knn\n" in text
    assert "cost      8.8 s (extract 1.2, train 7.5); 131 GFLOP\n" in text
    assert re.search(r"^made      20\d\d-\d\d-\d\d \d\d:\d\d by process \d+ on ", text, re.MULTILINE)


def test_ls_as_json(outputs: Path, capsys: Capture) -> None:
    flip(entries(outputs, "targets")[0] / "manifest.json", 0)
    found = listed(outputs, capsys)
    assert [(run["status"], set(run["top1"])) for run in found["runs"]] == [("finished", {"knn"})] * 2  # type: ignore[call-overload]
    size = sum(path.stat().st_size for path in run_of(outputs, 0).iterdir())
    assert found["runs"][0]["bytes"] == size
    problems = {str(entry["folder"]).split("/")[-2]: entry["problem"] for entry in found["cache"]}
    assert str(problems["targets"]).startswith("manifest.json cannot be read: it holds no JSON")
    assert problems["images"] is None


def test_a_run_that_says_running_is_running_only_while_somebody_holds_its_lock(
    outputs: Path, capsys: Capture, tmp_path: Path
) -> None:
    run = run_of(outputs, 0)
    set_status(run, "running")
    assert listed(outputs, capsys)["runs"][0]["status"] == "killed"
    code = "from rela_cli.store.locks import RunLock\nwith RunLock(Path(sys.argv[1])):\n"
    holder = python(code + "    print('in', flush=True)\n    time.sleep(600)", run)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert listed(outputs, capsys)["runs"][0]["status"] == "running"
    clean.main([str(outputs), "--unused", "--finished", "--resumable"])
    assert capsys.readouterr().out.count("stays: a process is at work with it") == 3
    assert entries(outputs, "images") and entries(outputs, "targets")
    holder.kill()
    holder.communicate()
    wait_until(RunLock(run).is_free)


def test_show(rela: Rela, outputs: Path) -> None:
    shutil.rmtree(entries(outputs, "targets")[0])
    run = run_of(outputs, 1)
    for word in ("latest", run.name, str(run), "s1-"):
        done = rela("show", word, stub=NO_TORCH) if word == "latest" else None
        text = done.stdout if done else shown(word, outputs)
        for part in (run.name, "status    finished", "top-1", "knn", "backbone.safetensors", "not made yet", "there"):
            assert part in text, text


def shown(word: str, outputs: Path) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert show.main([word, "--outputs", str(outputs)]) == 0
    return out.getvalue()


def test_show_of_a_failed_run_and_of_none(outputs: Path, capsys: Capture) -> None:
    run = run_of(outputs, 0)
    write_json(run / "manifest.json", {"status": "failed", "reason": "no room", "command": "rela train seed=0"})
    assert "status    failed: no room" in shown("s0", outputs)
    assert "next      rela train seed=0" in shown("s0", outputs)
    with pytest.raises(MissingError, match="2 runs have fake in their name"):
        show.main(["fake", "--outputs", str(outputs)])
    with pytest.raises(MissingError, match="no run nothing in"):
        show.main(["nothing", "--outputs", str(outputs)])
    assert show.main(["s1", "--outputs", str(outputs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["status"] == "finished"


# ------------------------------------------------------------------------------------------------------------- cleaning


def everything(outputs: Path) -> set[str]:
    found = {str(path.relative_to(outputs)) for path in outputs.rglob("*")}
    return {name for name in found if not name.endswith((".lock", ".holder"))}


def leave_behind(outputs: Path) -> list[Path]:
    """Leftovers of all kinds."""
    left = [outputs / "cache" / "features" / ".aaaaaaaaaaaaaaaa.tmp", outputs / "cache" / "targets" / "b.corrupt"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(b"x" * 1000)
    (run_of(outputs, 0) / ".result.json.1.tmp").write_text("{")
    return [*left, run_of(outputs, 0) / ".result.json.1.tmp"]


def test_a_dry_run_removes_nothing(rela: Rela, outputs: Path) -> None:
    leave_behind(outputs)
    before = everything(outputs)
    done = rela("clean", "--dry-run", "--unused", "--finished", stub=NO_TORCH)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("would go") == 3 + 4
    assert "would free" in done.stdout
    assert everything(outputs) == before


def test_leftovers_go_and_nothing_else(outputs: Path, capsys: Capture) -> None:
    before = everything(outputs)
    left = leave_behind(outputs)
    clean.main([str(outputs)])
    assert not any(path.exists() for path in left)
    assert everything(outputs) == before
    said = capsys.readouterr().out
    assert "1 cache entries; no run uses them (--unused)" in said
    assert "3 cache entries; only finished runs use them" in said
    assert "freed 3 kB" in said


def test_unused_entries_go_when_asked(outputs: Path, capsys: Capture) -> None:
    clean.main([str(outputs), "--unused"])
    assert [len(entries(outputs, kind)) for kind in ("images", "features", "targets")] == [1, 1, 1]
    clean.main([str(outputs), "--finished"])
    assert [len(entries(outputs, kind)) for kind in ("images", "features", "targets")] == [0, 0, 0]
    assert go(outputs, *WORDS).status == "found", "a finished run needs none of it"
    assert go(outputs, *WORDS, "probe.protocols=[lbfgs]").status == "run", "and another probe makes it again"


@pytest.mark.parametrize("status", ["stopped", "failed", "running", "trained"])
def test_what_a_resumable_run_needs_stays_or_is_named(outputs: Path, capsys: Capture, status: str) -> None:
    run = run_of(outputs, 1)
    set_status(run, status)
    clean.main([str(outputs), "--unused", "--finished"])
    assert [len(entries(outputs, kind)) for kind in ("images", "features", "targets")] == [1, 1, 1]
    assert "3 cache entries; unfinished runs go on from them (--resumable)" in capsys.readouterr().out
    clean.main([str(outputs), "--resumable"])
    said = capsys.readouterr().out
    assert said.count(f"NEEDED by {run.name} (") == 3
    assert entries(outputs, "features") == []


def test_an_entry_in_the_making_stays(outputs: Path, capsys: Capture) -> None:
    made = Entry("features", {"a": 1}, outputs / "cache")

    def fill(folder: Path) -> dict[str, object]:
        (folder / "x").write_bytes(b"1")
        clean.main([str(outputs), "--unused"])
        return {}

    made.make(fill)
    assert (made.folder / "x").exists()
    assert clean.main([str(outputs)]) == 0
    with pytest.raises(MissingError, match="is not a folder"):
        clean.main([str(outputs / "nowhere")])


# ----------------------------------------------------------------------------------------------- easily overlooked


def test_a_run_elsewhere_is_known_to_its_cache(outputs: Path, tmp_path: Path, capsys: Capture) -> None:
    """paths.run=FOLDER: it is killed, and the features that nobody else has stay until they are named."""
    mine = tmp_path / "mine"
    words = (*WORDS, "prior.seed=7", f"paths.run={mine}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rela_cli.training.trainer.Trainer.update", raise_interrupt)
        go(outputs, *words)
    assert str(mine) in [run["folder"] for run in listed(outputs, capsys)["runs"]]
    clean.main([str(outputs), "--unused", "--finished"])
    assert len(entries(outputs, "features")) == 1, "that of another prior went, this one did not"
    assert f"features/{entries(outputs, 'features')[0].name}" not in capsys.readouterr().out
    clean.main([str(outputs), "--resumable", "--dry-run"])
    assert f"NEEDED by {mine} (stopped)" in capsys.readouterr().out
    assert go(outputs, *words).status == "run"
    shutil.rmtree(mine)
    assert str(mine) not in [run["folder"] for run in listed(outputs, capsys)["runs"]]


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_was_set_aside_waits_for_nothing(outputs: Path, capsys: Capture) -> None:
    """resume=never: no command goes on with the old one, so nothing is kept for it."""
    run = run_of(outputs, 0)
    set_status(run, "stopped")
    run.rename(run.with_name(f"{run.name}.old-1"))
    clean.main([str(outputs), "--finished"])
    assert entries(outputs, "targets") == entries(outputs, "images") == []
    assert "NEEDED" not in capsys.readouterr().out


def test_a_damaged_checkpoint_goes_unless_somebody_is_at_work(outputs: Path, capsys: Capture) -> None:
    run = run_of(outputs, 0)
    good, bad = (run / f"checkpoint-0000000001-0.safetensors{tail}" for tail in ("", ".corrupt"))
    good.write_bytes(b"good")
    bad.write_bytes(b"bad")
    with RunLock(run):
        clean.main([str(outputs)])
    assert bad.exists()
    clean.main([str(outputs)])
    assert good.exists() and not bad.exists()
    assert f"{bad}  damaged, set aside" in capsys.readouterr().out


def test_a_folder_that_may_not_be_written_to_is_said(rela: Rela, made: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "outputs", "4m") as outputs:
        shutil.copytree(made, outputs, symlinks=True, dirs_exist_ok=True)
        before = everything(outputs)
        remount(outputs, "ro")
        done = rela("clean", "--unused", "--finished")
        assert (done.returncode, done.stdout) == (1, ""), "nothing is said to be gone that is not"
        assert "Read-only file system" in done.stderr and "unexpected" not in done.stderr
        assert everything(outputs) == before
        assert rela("ls").returncode == rela("show").returncode == 0
        assert rela("clean", "--dry-run", "--finished").returncode == 0
