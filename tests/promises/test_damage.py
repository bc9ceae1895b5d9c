"""Damaged files under outputs/: noticed, named, and no more is lost than what they held."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rela_cli import cli
from rela_cli.commands import clean, ls
from rela_cli.errors import MissingError, RelaError
from rela_cli.store.entries import Entry
from rela_cli.store.files import read_json, read_whole, write_json
from rela_cli.store.integrity import damage
from rela_cli.store.locks import RunLock
from rela_cli.store.notices import warn_once
from rela_cli.store.sealed import DEEPEST_LEVEL, SEAL, Damaged, sealed, unsealed
from rela_cli.weights import run_folder
from tests.promises.helpers import WORDS, go, only, read

Capture = pytest.CaptureFixture[str]
Change = Callable[[Path], object]
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs on the same features."""
    outputs = tmp_path_factory.mktemp("made") / "outputs"
    for seed in (0, 1):
        go(outputs, *WORDS, f"seed={seed}")
    return outputs


@pytest.fixture
def outputs(made: Path, tmp_path: Path) -> Path:
    warn_once.cache_clear()
    return Path(shutil.copytree(made, tmp_path / "outputs", symlinks=True))


def run_of(outputs: Path, seed: int = 0) -> Path:
    return only(outputs / "runs", f"fake-*-s{seed}-*")


def change_digit(path: Path, after: str) -> None:
    """One bit of the first digit that comes after a word."""
    content = bytearray(path.read_bytes())
    place = content.index(after.encode()) + len(after)
    place += next(i for i, byte in enumerate(content[place:]) if chr(byte) in "23456789")
    content[place] ^= 1
    path.write_bytes(content)


def without_seal(path: Path) -> None:
    facts = read(path)
    del facts[SEAL]
    path.write_text(json.dumps(facts))


# ------------------------------------------------------------------------------------------------------ one bit of JSON


def test_every_bit_of_a_sealed_file_counts(tmp_path: Path) -> None:
    """Whatever bit changes: the file is damaged, or says the same as before."""
    facts = {"mean": [0.589, 1e-7], "files": {"a": {"bytes": 12}}, "ok": True, "none": None, "word": "naïve", "n": 35.0}
    path = tmp_path / "m.json"
    write_json(path, facts)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            try:
                found, has_seal = unsealed(bytes(changed))
            except Damaged:
                continue
            assert not has_seal or found == facts, (place, bit)


def test_a_seal_is_of_the_values() -> None:
    facts = sealed({"b": (1, 2), "a": {3: 0.1}})
    assert unsealed(json.dumps(facts, indent=7)) == ({"b": [1, 2], "a": {"3": 0.1}}, True)
    assert sealed(facts) == facts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"a"',
        "\x00",
        f'{{"a": {DEEP}}}',
        '{"a":' * (DEEPEST_LEVEL + 2) + "1" + "}" * (DEEPEST_LEVEL + 2),
    ],
)
def test_what_is_no_object_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    assert read_json(path) is None
    with pytest.raises(MissingError, match="is damaged"):
        read_whole(path)


@pytest.mark.parametrize(("kind", "after"), [("images", '"mean"'), ("targets", '"dim"')])
def test_a_bit_in_a_manifest_of_the_cache(outputs: Path, kind: str, after: str, capsys: Capture) -> None:
    """It is set aside and made again, and everything comes out as it was."""
    wanted = only(outputs / "runs", "fake-*-s0-*") / "backbone.safetensors"
    before, numbers = wanted.read_bytes(), read(run_of(outputs) / "result.json")["probe"]["knn"]["top1"]
    for entry in (outputs / "cache" / kind).glob("????????????????"):
        change_digit(entry / "manifest.json", after)
        assert "own sha256 differs" in str(damage(entry))
    shutil.rmtree(run_of(outputs))
    done = go(outputs, *WORDS, "seed=0")
    assert "is damaged (manifest.json" in capsys.readouterr().err and list((outputs / "cache" / kind).glob("*.corrupt"))
    assert wanted.read_bytes() == before and done.folder is not None
    assert read(done.folder / "result.json")["probe"]["knn"]["top1"] == numbers


def test_an_entry_of_an_older_version_is_taken_with_a_word(outputs: Path, capsys: Capture) -> None:
    """Making it again could take days; from then on it has a hash."""
    entry = only(outputs / "cache", "features/????????????????")
    without_seal(entry / "manifest.json")
    spec = read(entry / "manifest.json")["spec"]
    assert Entry("features", spec, outputs / "cache").make(lambda folder: pytest.fail("made again")) is False
    assert "holds no hash of itself (an older version wrote it); it is taken as it is" in capsys.readouterr().err
    assert SEAL in read(entry / "manifest.json")


@pytest.mark.parametrize("manifest", [{"files": {}}, {"files": {}, "spec": {"a": 1}}, {"spec": {}}])
def test_a_manifest_without_a_hash_has_to_be_that_of_its_entry(outputs: Path, manifest: dict[str, Any]) -> None:
    entry = only(outputs / "cache", "features/????????????????")
    (entry / "manifest.json").write_text(json.dumps(manifest))
    assert "is not that of this entry" in str(damage(entry))


# ----------------------------------------------------------------------------------------------------- tables and pages


def spoil(path: Path, **changes: Any) -> None:
    """Values of another kind in a file that carries no hash."""
    facts = {**read(path), **changes}
    facts.pop(SEAL)
    path.write_text(json.dumps(facts))


def flip(path: Path, place: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 128
    path.write_bytes(content)


SPOILED: dict[str, Change] = {
    "one digit": lambda run: change_digit(run / "result.json", '"top1"'),
    "baselines": lambda run: spoil(run / "result.json", baselines={"untrained": "x"}),
    "a baseline": lambda run: spoil(run / "result.json", baselines={"untrained": {"knn": {"top1": "x"}}}),
    "network": lambda run: spoil(run / "result.json", probe={"knn": {"top1": 0.5, "network": []}}),
    "seconds": lambda run: spoil(run / "result.json", seconds="x"),
    "flops": lambda run: spoil(run / "result.json", flops={"train": "x"}),
    "budget": lambda run: spoil(run / "result.json", budget="0.5"),
    "endless": lambda run: spoil(run / "result.json", budget=float("inf")),
    "steps": lambda run: spoil(run / "result.json", switch_step=[1], steps={}),
    "deep": lambda run: (run / "result.json").write_text(f'{{"a": {DEEP}}}'),
    "empty": lambda run: (run / "result.json").write_text(""),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_result_is_left_out_and_named(
    outputs: Path, how: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other runs are shown, with the same numbers; `rela ls` and `rela train` go on."""
    monkeypatch.chdir(outputs.parent)
    SPOILED[how](run_of(outputs))
    assert cli.main(["table", "--format=json"]) == 0
    out, err = capsys.readouterr()
    assert f"{run_of(outputs)}/result.json: " in err, "the file is named"
    wanted = read(run_of(outputs, 1) / "result.json")["probe"]["knn"]["top1"]
    assert [(row["mean"], row["n"]) for row in json.loads(out) if row["kind"] == "prior"] == [(wanted, 1)]
    assert cli.main(["table", "--cost"]) == cli.main(["ls"]) == 0
    if how in ("one digit", "seconds"):
        go(outputs, *WORDS, "seed=0")
        assert read_json(run_of(outputs) / "result.json")


@pytest.mark.parametrize("how", ["bit", "deep", "folder", "kind"])
def test_other_files_of_a_run(outputs: Path, how: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in them, every command goes on and names them."""
    monkeypatch.chdir(outputs.parent)
    names = ("metrics.jsonl", "switch.jsonl", "config.yaml", "manifest.json")
    for path in (run_of(outputs) / name for name in names):
        if how == "bit":
            flip(path)
        elif how == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_text({"deep": f"{DEEP}\n", "kind": '{"step": "x", "loss": []}\n'}[how])
    for command in ("ls", "show s0", "report --no-neighbours --out=r.html", "table"):
        assert cli.main(command.split()) == 0, command
    said = "".join(capsys.readouterr()) + Path("r.html").read_text()
    assert all(f"{name}: " in said for name in names[:2]) and "config.yaml" in said and "damaged" in said


# ---------------------------------------------------------------------------------------------------- a run's own files


def test_a_run_as_a_prior_with_a_bit_in_its_manifest(outputs: Path) -> None:
    run = run_of(outputs)
    change_digit(run / "manifest.json", '"mean"')
    with pytest.raises(MissingError, match=r"manifest.json is damaged: it does not hold what was written"):
        run_folder.run_facts(run)
    with pytest.raises(MissingError, match=r"manifest.json is damaged"):
        run_folder.check_backbone(run, "online")


def test_a_run_as_a_prior_with_a_bit_in_its_config(outputs: Path) -> None:
    run = run_of(outputs)
    change_digit(run / "config.yaml", "width:")
    with pytest.raises(MissingError, match=r"config.yaml is damaged: its hash"):
        run_folder.run_facts(run)


def unfinished(outputs: Path) -> Path:
    """As a kill -9 in the middle of training leaves it."""
    run = run_of(outputs)
    for name in ("backbone.safetensors", "result.json"):
        (run / name).unlink()
    return run


@pytest.mark.parametrize("after", ['"hash"', '"created"'])
def test_a_damaged_manifest_of_an_unfinished_run(outputs: Path, after: str, capsys: Capture) -> None:
    """Its folder's name says which run it is, and checkpoints hold the rest."""
    run = unfinished(outputs)
    change_digit(run / "manifest.json", after)
    assert go(outputs, *WORDS, "seed=0").folder == run
    assert "manifest.json is damaged" in capsys.readouterr().err
    assert read(run / "manifest.json")["status"] == "finished" and (run / "manifest.json.corrupt").exists()


def test_a_damaged_manifest_in_a_folder_by_hand_is_not_guessed(outputs: Path) -> None:
    by_hand = outputs.parent / "mine"
    unfinished(outputs).rename(by_hand)
    change_digit(by_hand / "manifest.json", '"hash"')
    with pytest.raises(RelaError, match="If it is this one, remove the file"):
        go(outputs, *WORDS, "seed=0", f"paths.run={by_hand}")
    (by_hand / "manifest.json").unlink()
    assert go(outputs, *WORDS, "seed=0", f"paths.run={by_hand}").status == "run"


def test_a_damaged_manifest_of_a_finished_run_is_no_reason_to_train_again(outputs: Path) -> None:
    change_digit(run_of(outputs) / "manifest.json", '"steps"')
    with pytest.raises(RelaError, match="Training is done there"):
        go(outputs, *WORDS, "seed=0")
    assert go(outputs, *WORDS, "seed=0", "resume=never").status == "run"


# ----------------------------------------------------------------------------------------------------- locks and links


def cleaned(outputs: Path, capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert clean.main([str(outputs), *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("status", ["trained", "finished", "failed", "stopped"])
def test_what_a_run_at_work_uses_stays(outputs: Path, status: str, capsys: Capture) -> None:
    """Whatever its manifest says: its lock is held."""
    for seed in (0, 1):
        path = run_of(outputs, seed) / "manifest.json"
        write_json(path, {**(read_json(path) or {}), "status": status})
    with RunLock(run_of(outputs)):
        assert "gone" not in cleaned(outputs, capsys, "--unused", "--finished", "--resumable")
        assert ls.main([str(outputs)]) == 0 and "running" in capsys.readouterr().out
    assert len(list((outputs / "cache").glob("*/????????????????"))) == 3


def test_what_a_run_with_a_damaged_manifest_may_need_stays(outputs: Path, capsys: Capture) -> None:
    flip(run_of(outputs) / "manifest.json")
    assert "gone" not in cleaned(outputs, capsys, "--unused", "--finished")


def test_an_entry_that_was_moved_away_behind_a_link(outputs: Path, capsys: Capture) -> None:
    """It is used; clean takes the link and leaves what it points to, and the next run makes it anew."""
    entry = only(outputs / "cache", "features/????????????????")
    elsewhere = outputs.parent / "other disk"
    shutil.move(entry, elsewhere)
    entry.symlink_to(elsewhere)
    assert damage(entry, contents=True) is None
    said = cleaned(outputs, capsys, "--finished")
    assert f"a link; what it points to stays: {elsewhere}" in said
    assert not os.path.lexists(entry) and (elsewhere / "manifest.json").is_file()
    shutil.rmtree(run_of(outputs))
    shutil.rmtree(outputs / "cache" / "targets", ignore_errors=True)
    assert go(outputs, *WORDS, "seed=0").status == "run" and entry.is_dir()


def test_a_link_in_place_of_a_half_made_entry(tmp_path: Path) -> None:
    entry = Entry("features", {"a": 1}, tmp_path)
    entry.folder.parent.mkdir()
    (tmp_path / "there").mkdir()
    entry.folder.with_name(f".{entry.hash}.tmp").symlink_to(tmp_path / "there")
    assert entry.make(lambda folder: {"n": len((folder / "x").write_text("x") * "x")}) is True
    assert (tmp_path / "there").is_dir() and damage(entry.folder) is None


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    entry = Entry("features", {"a": 1}, tmp_path)
    entry.folder.parent.mkdir()
    entry.folder.symlink_to(tmp_path / "unmounted")
    with pytest.raises(MissingError, match=r"is a link to .*unmounted, which is not there. Bring that folder back"):
        entry.make(lambda folder: {})
    assert entry.folder.is_symlink()


def test_a_run_that_was_moved_away_behind_a_link(outputs: Path, capsys: Capture) -> None:
    """It is listed once, and what it needs stays."""
    for seed in (0, 1):
        run = run_of(outputs, seed)
        path = run / "manifest.json"
        write_json(path, {**(read_json(path) or {}), "status": "stopped"})
        shutil.move(run, outputs.parent / run.name)
        run.symlink_to(outputs.parent / run.name)
    assert ls.main([str(outputs)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("runs  2, ") and out.count("stopped  ") == 2
    assert "gone" not in cleaned(outputs, capsys, "--unused", "--finished")
