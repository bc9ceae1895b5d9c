"""Row 2 of docs/reliability.md: an extraction that was stopped or killed goes on behind its last whole block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from torch import Tensor

from rela_cli.store import blocks
from rela_cli.store.outputs import take_inventory
from tests.promises.harness import TINY, Process, call, finish, spawn
from tests.promises.helpers import only, wait_until

WORDS = (*TINY, "runtime=cpu", "runtime.block_size=8")  # 64 images and 20: 8 blocks and 3


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert call(folder, "extract", *WORDS) == 0
    return features(folder)


def features(folder: Path) -> dict[str, bytes]:
    """The entry's files, the manifest apart; nothing of the way there is left."""
    (entry,) = (path for path in (folder / "outputs/cache/features").iterdir() if path.name[0] != ".")
    assert not list(folder.glob("outputs/cache/features/.*.part"))
    return {path.name: path.read_bytes() for path in entry.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("rows.after_line:3", ["train: resumed at block 3 of 8"]),
        ("rows.before_line:3", ["train: resumed at block 2 of 8"]),
        ("rows.after_line:10", ["train: resumed at block 8 of 8", "test: resumed at block 2 of 3"]),
        ("features.after_fill", ["train: resumed at block 8 of 8", "test: resumed at block 3 of 3"]),
        ("features.before_replace", []),
        ("features.after_replace", []),
    ],
)
def test_killed_it_goes_on(tmp_path: Path, expected: dict[str, bytes], point: str, said: list[str]) -> None:
    assert call(tmp_path, "extract", *WORDS, env={"RELA_FAULT": point}) == -signal.SIGKILL
    assert call(tmp_path, "extract", *WORDS, env={"RELA_FAULT": ""}) == 0
    out = (tmp_path / "out").read_text()
    assert [line.removeprefix("  extract ") for line in out.splitlines() if "resumed" in line] == said
    found = features(tmp_path)
    found.pop(".train.blocks", None), found.pop(".test.blocks", None)  # of one killed behind its last step
    assert found == expected


VIEWS = (*WORDS, "extract.views=2")


def made_of_views(folder: Path) -> dict[str, bytes]:
    """Features and targets of the light views, and their boxes."""
    found = [
        path for kind in ("views", "view_targets") for path in folder.glob(f"outputs/cache/{kind}/*/*.safetensors")
    ]
    return {f"{path.parent.parent.name}/{path.name}": path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def expected_views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("views")
    assert call(folder, "transport", *VIEWS) == 0
    return made_of_views(folder)


@pytest.mark.parametrize(
    ("point", "said"),
    [("rows.after_line:14", "3 of 8"), ("rows.before_line:14", "2 of 8"), ("view_targets.before_replace", "")],
)
def test_light_views_go_on_too(tmp_path: Path, expected_views: dict[str, bytes], point: str, said: str) -> None:
    """The clean images come first: 8 blocks and 3."""
    assert call(tmp_path, "transport", *VIEWS, env={"RELA_FAULT": point}) == -signal.SIGKILL
    assert call(tmp_path, "transport", *VIEWS, env={"RELA_FAULT": ""}) == 0
    resumed = [line for line in (tmp_path / "out").read_text().splitlines() if "resumed" in line]
    assert [line.partition("at block ")[2] for line in resumed] == [said] * bool(said)
    assert len(expected_views) == 4 and made_of_views(tmp_path) == expected_views


def test_so_do_feature_maps(tmp_path: Path) -> None:
    """Killed in their third block, behind eight of the train images and three of the test images."""
    words, made = (*WORDS, "extract.tokens=true"), []
    for folder, points in ((tmp_path / "killed", ["rows.after_line:14", ""]), (tmp_path / "not", [""])):
        folder.mkdir()
        codes = [call(folder, "transport", *words, env={"RELA_FAULT": point}) for point in points]
        assert codes == [-signal.SIGKILL, 0][-len(points) :]
        found = [
            path for kind in ("tokens", "token_targets") for path in folder.glob(f"outputs/cache/{kind}/*/*.safet*")
        ]
        made.append({f"{path.parent.parent.name}/{path.name}": path.read_bytes() for path in found})
    assert "train: resumed at block 3 of 8" in (tmp_path / "killed/out").read_text()
    assert len(made[0]) == 3 and made[0] == made[1]


@pytest.mark.parametrize("kind", ["a link to nothing", "a file"])
def test_a_beginning_that_is_no_folder_is_let_go(tmp_path: Path, expected: dict[str, bytes], kind: str) -> None:
    assert call(tmp_path, "extract", *WORDS, env={"RELA_FAULT": "rows.after_line:3"}) == -signal.SIGKILL
    part = only(tmp_path, "outputs/cache/features/.*.part")
    shutil.rmtree(part)
    part.symlink_to("gone") if "link" in kind else part.write_text("x")
    assert call(tmp_path, "extract", *WORDS, env={"RELA_FAULT": ""}) == 0
    assert f"{part.name} is no folder, or a link to nothing: removed" in (tmp_path / "err").read_text()
    assert features(tmp_path) == expected


def third_block_hangs() -> None:
    add = blocks.KeptWriter.add

    def hanging(self: blocks.KeptWriter, block: Tensor) -> None:
        if self.blocks == 3:
            Path("there").touch()
            time.sleep(600)
        add(self, block)

    blocks.KeptWriter.add = hanging  # type: ignore[method-assign]


def test_stopped_it_goes_on_and_a_clean_lets_go_of_it(tmp_path: Path, expected: dict[str, bytes]) -> None:
    for round in range(2):
        process: Process = spawn(tmp_path, "extract", *WORDS, before=third_block_hangs)
        wait_until((tmp_path / "there").exists)
        assert not take_inventory(tmp_path / "outputs").leftovers, "a process is at it"
        os.kill(process.pid, signal.SIGTERM)
        assert finish(process) == 143
        (tmp_path / "there").unlink()
        if round == 0:
            (left,) = take_inventory(tmp_path / "outputs").leftovers
            assert left.path.suffix == ".part" and "would go on with it" in left.why
            assert call(tmp_path, "clean") == 0
            assert not take_inventory(tmp_path / "outputs").leftovers
    assert call(tmp_path, "extract", *WORDS) == 0
    assert "extract train: resumed at block 3 of 8" in (tmp_path / "out").read_text()
    assert features(tmp_path) == expected
    manifest = json.loads(only(tmp_path, "outputs/cache/features/*/manifest.json").read_text())
    assert manifest["seconds"] > 0 and set(manifest["files"]) == {"train.safetensors", "test.safetensors"}
