"""`rela reproduce`: what is in a table, what is there of it, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from rela_cli.commands.reproduce import command, execute, tables
from rela_cli.commands.reproduce.command import read
from rela_cli.commands.reproduce.execute import Batch, Executor
from rela_cli.commands.reproduce.finish import how_claims_stand, name_options, standing_text
from rela_cli.commands.reproduce.runs import PlannedRuns, data_words
from rela_cli.commands.reproduce.tables import METHODS, PROFILES, RECIPE, TABLES
from rela_cli.config.compose import compose
from rela_cli.config.schema import Config
from rela_cli.errors import ConfigError, MissingError
from rela_cli.launch import processes
from rela_cli.launch import room as room_of
from rela_cli.launch.room import MemoryUse, Room, write_note
from rela_cli.launch.shares import SHARES, Shares, shares_from
from rela_cli.pipeline.estimate import Cost
from rela_cli.report.differences.paired import paired
from tests import warm
from tests.config.test_presets import keywords

PROJECT = Path(__file__).parents[2]


def folder_of_classes(root: Path, classes: int, images: int = 1) -> Path:
    """train/<class>/ and test/<class>/ with some images each."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(classes):
            folder = root / split / f"c{number:03d}"
            folder.mkdir(parents=True)
            for image in range(images):
                pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return root


def reproduce(*words: str, before: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    return warm.run(Path.cwd(), "reproduce", *words, env=os.environ, before=before)


def few_images() -> None:
    """Where it does not matter what the numbers are."""
    few = ("dataset.limit=256", "dataset.test_limit=60", "epochs=1", "learner.width=4", "probe.protocols=[lbfgs]")
    tables.SMOKE = replace(tables.SMOKE, words=(*tables.SMOKE.words, *few))


# ----------------------------------------------------------------------------------------------------- what tables hold


@pytest.mark.parametrize(
    ("said", "jobs", "launcher", "dry_run"),
    [((), command.default_jobs(), "", False), (("JOBS=3", "LAUNCHER=joblib", "DRY_RUN=1"), 3, "joblib", True)],
)
@pytest.mark.parametrize("name", TABLES)
def test_make_types_what_the_command_takes(
    name: str, said: tuple[str, ...], jobs: int, launcher: str, dry_run: bool, tmp_path: Path
) -> None:
    """`make -n` prints the command of each table; without a word from the user the command decides."""
    data = tmp_path / "my photos"
    data.mkdir()
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "JOBS"))}
    words = ["make", "-n", "-o", ".venv/.stamp-dev", name, "PROFILE=smoke", f"DATA={data}", *said]
    done = subprocess.run(words, cwd=PROJECT, env=plain, capture_output=True, text=True, check=True)
    rela, verb, *typed = shlex.split(done.stdout)
    assert (rela, verb) == (".venv/bin/rela", "reproduce")
    asked = read(typed)
    assert (asked.table.name, asked.profile, asked.data) == (name, "smoke", data)
    assert (asked.jobs, asked.launcher, asked.dry_run) == (jobs, launcher, dry_run)


@cache
def composed(*words: str) -> Config:
    """Many columns, and most teachers, have the same words."""
    return compose(words)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", TABLES)
def test_every_column_composes(name: str, profile: str) -> None:
    """Whatever data are here: a run of each column is a valid config, its teacher's too."""
    table = TABLES[name](profile)
    for section in table.sections:
        for column in section.columns:
            words = [*column.words, *(["prior.run=somewhere"] if column.teacher else [])]
            config = composed(*words, *(["dataset.root=x"] if "mini" in " ".join(words) else []))
            assert config.is_plain == ("prior=none" in column.words)
            for part in (config.switch, config.learner, config.transport):
                assert set(part.options) <= keywords(part.target), words
            if column.teacher:
                teacher = composed(*column.teacher.words, "dataset.root=x")
                assert teacher.is_plain and column.teacher.budgets == (1.0,)
    for claim in table.claims:
        columns = {column.name: column for column in table.sections[claim.section].columns}
        assert claim.budget in columns[claim.better].budgets
        assert claim.than_budget in columns[claim.than].budgets


def test_live_columns_stand_beside_those_of_priors() -> None:
    request = read(["table-headline", "--profile", "smoke", "--live"])
    (section,) = request.table.sections
    names = [column.name for column in section.columns]
    assert names == ["SimCLR", "patches", "patches live", "random", "SimCLR*"]
    assert all(compose(list(column.words)).is_live == ("live" in column.name) for column in section.columns)
    assert request.out.name == "table-headline-smoke-live"
    assert not any("live" in column.name for column in TABLES["table-headline"]("smoke").sections[0].columns)


def test_the_full_table_1_is_the_papers() -> None:
    (section,) = TABLES["table1-cifar10"]("full").sections
    names = [column.name for column in section.columns]
    assert names == ["BYOL", "random", "CF10-T", "CF100-T", "TIN-T", "IN1K-T", "CLIP RN50", "BYOL*"]
    assert [column.budgets for column in section.columns] == [(0.1, 0.2, 0.5)] * 7 + [(1.0,)]
    config = compose(list(section.columns[0].words))
    options = config.optimizer.options
    protocol = (config.method.name, config.epochs, config.batch_size, config.optimizer.name)
    assert protocol == ("byol", 100, 128, "adamw")
    assert (options["lr"], options["weight_decay"], options["schedule"]) == (1e-3, 0.01, "constant")
    assert (config.learner.name, config.learner.options) == ("resnet18", {"stem": "cifar", "width": 64})
    assert (config.method.options["ema"], config.method.options["ema_schedule"]) == (0.99, "constant")
    assert config.switch.options["constants"] == "reference"
    large = compose(list(TABLES["table1-in1k"]("full").sections[0].columns[0].words))
    assert (large.learner.name, large.batch_size, large.epochs) == ("resnet50", 512, 100)


def test_the_recipe_changes_what_its_columns_say_and_nothing_else() -> None:
    for section in TABLES["table-recipe"]("mini").sections:
        found = {c.name.rpartition(" with ")[0]: compose([*c.words, "dataset.root=x"]) for c in section.columns}
        default, best = found["default"], found["best"]
        assert replace(best, transport=default.transport, matching=default.matching, switch=default.switch) == default
        assert best.transport.options == default.transport.options | {"power": 0.5, "dims": "twice"}
        assert (best.matching.view.jitter_p, best.matching.view.gray_p, best.switch.name) == (0.0, 0.0, "never")
        geometric = replace(best.matching.view, jitter_p=0.8, gray_p=0.2)
        assert geometric == default.matching.view
        preset = compose(["experiment=best", "dataset=digits"])
        assert (preset.transport, preset.matching, preset.switch) == (best.transport, best.matching, best.switch)
        assert {c.seeds for c in section.columns} == {(0, 1, 2, 3, 4)}


def test_the_mini_tables_have_three_seeds_and_every_method() -> None:
    (section,) = TABLES["table1-cifar10"]("mini").sections
    assert {column.seeds for column in section.columns} == {(0, 1, 2)}
    *columns, best = TABLES["table-methods"]("mini").sections[0].columns
    assert {column.name.partition(",")[0] for column in columns} == set(METHODS)
    assert best.name == "embedded, best" and set(RECIPE["best"]) <= set(best.words)


def test_the_recipe_stands_at_each_budget_of_the_ablation() -> None:
    plain, default, best = TABLES["table-ablation"]("mini").sections[-1].columns
    assert plain.budgets == default.budgets == best.budgets == (0.1, 0.2, 0.5, 1.0)
    assert best.words == (*default.words, *RECIPE["best"])


# ------------------------------------------------------------------------------------------------------- where data are


def test_data_are_known_by_their_layout(tmp_path: Path) -> None:
    ten = folder_of_classes(tmp_path / "cifar10", 10)
    here = data_words("cifar10", ten, limited=False)
    assert here == ["dataset=image_folder", f"dataset.root={ten}"]
    assert data_words("cifar10", tmp_path, limited=True) == [*here, "dataset.limit=5000"]
    with pytest.raises(MissingError, match="100 class folders"):
        data_words("cifar100", tmp_path, limited=False)
    (tmp_path / "cifar-100-python").mkdir()
    assert data_words("cifar100", tmp_path, limited=False)[0] == "dataset=cifar100"
    with pytest.raises(MissingError, match="DATA=FOLDER"):
        data_words("cifar10", None, limited=False)


def test_a_column_without_its_data_or_weights_says_why(tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "cifar10", 10, images=128)  # a tenth of them is a batch
    runs = PlannedRuns(TABLES["table1-cifar10"]("full"), tmp_path, [f'paths.outputs="{tmp_path}/o"'])
    states = {name: {planned.state for planned in group} for (_, name, _), group in runs.by_place.items()}
    assert states["CF10-T"] == {"waits"}
    assert states["CF100-T"] == states["IN1K-T"] == {"not available"}
    reason = next(planned.missing for planned in runs if planned.column.name == "IN1K-T")
    assert "its prior cannot be trained" in reason and "imagenet" in reason


def test_runs_that_columns_share_are_made_once(tmp_path: Path) -> None:
    runs = PlannedRuns(TABLES["table-ablation"]("smoke"), None, [f'paths.outputs="{tmp_path}"'])
    listed = sum(len(group) for group in runs.by_place.values())
    folders = [planned.run.folder for planned in runs]
    assert len(folders) == len(set(folders)) < listed


def test_seeds_are_composed_together_and_stay_apart(tmp_path: Path) -> None:
    runs = list(PlannedRuns(TABLES["table-ablation"]("smoke"), None, [f'paths.outputs="{tmp_path}"']))
    for planned in runs[:2]:
        assert planned.config == compose(planned.all_words)
    assert {planned.config.seed for planned in runs} == {0, 1}


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1-cifar"], "did you mean table1-cifar10"),
        (["table1-cifar10", "profil=mini"], "did you mean --profile"),
        (["table1-cifar10", "profile=maxi"], "mini, full, smoke"),
        (["table1-cifar10", "jobs=0"], "at least 1"),
        (["table1-cifar10", "smoke"], "cannot read smoke"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(words)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(MissingError, match="is not a folder"):
        read(["table1-cifar10", "data=nowhere"])


class FakeProcess:
    """One of `rela`, that ends at the second look: it notes what it took of its GPU, and what came of its run."""

    pid, returncode = 7, 0

    def __init__(self, card: FakeCard, words: Sequence[str]) -> None:
        self.card, self.budget, self.looks = card, words[-2].removeprefix("budget="), iter(range(1))

    def poll(self) -> int | None:
        return self.end() if next(self.looks, None) is None else None

    def end(self) -> int:
        self.card.seen.append(sorted(process.budget for process in self.card.running))
        self.card.running.remove(self)
        write_note(self.card.room.folder, MemoryUse(30, 100, 1, None))
        self.card.runs[self.budget].state = "cached"
        return 0


class FakeCard:
    """A GPU, and who has run on it side by side."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: Room, runs: Sequence[Any]) -> None:
        self.room, self.running, self.seen = room, list[FakeProcess](), list[list[str]]()
        self.runs = {f"{planned.budget:g}": planned for planned in runs}
        monkeypatch.setattr(execute, "POLL", 0.0)
        monkeypatch.setattr(processes, "start", lambda words, environment, log: self.start(words))

    def start(self, words: Sequence[str]) -> FakeProcess:
        self.running.append(FakeProcess(self, words))
        return self.running[-1]


class FakeRun(SimpleNamespace):
    """A planned run of which nothing is there yet."""

    run = None
    done = property(lambda self: self.state == "cached")


def fake_run(budget: float, state: str = "to do", **more: Any) -> Any:
    words = (f"budget={budget:g}",)
    names: dict[str, Any] = {"words": words, "all_words": words, "teacher": None, "waits": False, "seed": 0, **more}
    return FakeRun(**names, state=state, budget=budget, column=SimpleNamespace(name="x"))


def test_runs_of_a_table_fill_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest alone, then as many at once as have room; a line says how many that are."""
    room, said = Room("0", tmp_path / "gpu", 8), list[str]()
    runs: Any = [fake_run(budget) for budget in (1, 2, 3, 4, 5)]
    card = FakeCard(monkeypatch, room, runs)
    executor = Executor(runs, Shares(tmp_path, 8, ("0",), (), "", (room,)), tmp_path, said.append)
    executor.run([])
    assert card.seen == [["5"], ["2", "3", "4"], ["2", "3"], ["2"], ["1"]], said
    assert not executor.failed and all(planned.done for planned in runs)
    assert said[0].startswith("  [1/5] x, budget 5: 1 run, ")
    assert said[1].startswith("  GPU 0: 3 cells side by side (the largest cell so far takes")


def test_what_waits_for_a_prior_that_has_failed_is_not_run(tmp_path: Path) -> None:
    said = list[str]()
    waiting = fake_run(0.5, "waits", teacher=SimpleNamespace(key=""))
    waiting.waits = True
    executor = Executor(cast(Any, [waiting]), Shares(tmp_path, 2, (), ()), tmp_path, said.append)
    executor.run([])
    assert executor.failed == ["x, budget 0.5: its prior is not there"]
    assert said == ["  x, budget 0.5: not run, its prior is not there"]


def test_a_batch_is_a_sweep_that_takes_its_shares_from_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(processes, "start", lambda words, environment, log: started.append((words, environment)))
    shares = Shares(tmp_path / "shares", 2, ("0", "1"), (0, 1), "", (Room("0", tmp_path / "0", 8),))
    batch = Batch([fake_run(0.5), fake_run(0.5, seed=1)], tmp_path)
    for launcher in ("", "joblib"):
        batch.start(launcher, shares)
    (words, environment), (with_launcher, _) = started
    assert words == ["train", "-m", "hydra/launcher=basic", "budget=0.5", "seed=0,1"]
    assert with_launcher[2] == "hydra/launcher=joblib"
    assert shares_from(environment[SHARES]) == shares


@pytest.mark.parametrize(
    ("status", "record", "log", "why"),
    [
        (1, {"status": "failed", "message": "OutOfMemoryError: HIP\nMore"}, "", "OutOfMemoryError: HIP"),
        (-9, None, "epoch 3\n", "its process was ended by SIGKILL (killed, or out of memory)"),
        (2, None, "rela: prior.run: no such folder\n", "rela: prior.run: no such folder"),
        (2, None, "", "exit status 2"),
    ],
)  # fmt: skip
def test_why_a_run_is_not_finished(
    tmp_path: Path, status: int, record: dict[str, str] | None, log: str, why: str
) -> None:
    """What its sweep has noted of it, else how its process has ended."""
    (tmp_path / "1.log").write_text(log)
    if record:
        sweep = tmp_path / "outputs" / "sweeps" / "2026-01-01_00-00-00_7"
        sweep.mkdir(parents=True)
        (sweep / "1.json").write_text(json.dumps(record))
    config = SimpleNamespace(outputs=tmp_path / "outputs")
    batch = Batch([fake_run(0.5, "cached"), fake_run(0.5, seed=1, config=config)], tmp_path / "1.log")
    batch.process = cast(Any, SimpleNamespace(pid=7, returncode=status, poll=lambda: status))
    executor = Executor(cast(Any, []), Shares(tmp_path, 1, (), ()), tmp_path, print)
    executor.total = executor.left = 1
    assert executor.ended(batch)
    assert executor.failed == [f"x, budget 0.5, seed 1: {why}"]


@pytest.mark.parametrize(
    ("said", "gpus", "by_room", "count", "cells"),
    [((), "0,1", True, 16, None), (("jobs=3",), "0,1", False, 3, 2), (("jobs=2",), "", False, 2, None)],
)
def test_who_says_how_many_runs_at_once(
    said: tuple[str, ...], gpus: str, by_room: bool, count: int, cells: int | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Memory, unless the user does; two runs on GPUs have one each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(room_of, "cores", lambda: list(range(16)))
    request = read(["table1-cifar10", "profile=smoke", *said])
    assert (request.by_room, request.jobs) == (by_room, int(said[0][-1]) if said else 2)
    shares = command.shares_of_runs(PlannedRuns(request.table, None, []), request, tmp_path)
    assert (shares.count, [room.said for room in shares.rooms]) == (
        count,
        [cells] * len(gpus.split(",") if gpus else []),
    )
    assert [shares.gpu(number) for number in range(3)] == ([*"010"] if gpus else [None] * 3)


def test_verdicts() -> None:
    assert standing_text(None) == "not measured"
    assert standing_text(paired({0: 0.04, 1: 0.05, 2: 0.06})).startswith("holds: +5.0 points [+2.5, +7.5] (n 3)")
    assert standing_text(paired({0: -0.04, 1: -0.05, 2: -0.06})).startswith("does not hold: -5.0")
    assert standing_text(paired({0: -0.04, 1: 0.05})).startswith("open: +0.5")
    assert standing_text(paired({0: 0.001, 1: 0.002, 2: -0.001}), 1.0).startswith("holds: +0.1")
    assert standing_text(paired({0: 0.001, 1: 0.02, 2: -0.01}), 1.0).startswith("open: +0.4")
    assert standing_text(paired({0: 0.04, 1: 0.05, 2: 0.06}), 1.0).startswith("does not hold: +5.0")
    assert standing_text(paired({0: 0.01}), 2.0) == "open: +1.0 points (n 1; equivalence needs two seeds or more)"
    assert standing_text(paired({0: 0.01})) == "holds by its sign alone: +1.0 points (n 1, no interval)"


@pytest.mark.parametrize("profile", PROFILES)
def test_how_to_read_claims_fits_a_screen(profile: str) -> None:
    """Every verdict is explained, in lines of at most 80 letters; a smoke run says that its own mean nothing."""
    lines = how_claims_stand(profile)
    text = " ".join(lines)
    assert max(map(len, lines)) <= 78 and len(lines) > 3
    assert all(word in text for word in ("95 %", "holds", "does not hold", "open", "one seed"))
    assert ("too short" in text) == (profile == "smoke")


def test_the_plan_explains_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What waits, and for what; that smoke's numbers mean nothing; memory of a run with its libraries."""
    folder_of_classes(tmp_path / "cifar10", 10, images=32)
    monkeypatch.setattr(command, "planned_cost", lambda planned, estimator: Cost(1, 1, 1.0, 60.0, 8e8, 1e6))
    words = [f"data={tmp_path}", f"outputs={tmp_path}/o", "dry_run=1"]
    assert command.main(["table1-cifar10", "profile=mini", *words]) == 0
    mini = capsys.readouterr().out
    assert "3 waits" in mini and "  waits: its prior is a run of this table, which is trained first" in mini
    assert "each run at a time takes 800 MB of memory to train" in mini and "mean anything" not in mini
    assert command.main(["table1-cifar10", "profile=smoke", *words]) == 0
    smoke = capsys.readouterr().out
    assert "far too short for their numbers to mean anything" in smoke and "waits" not in smoke


def test_a_trained_prior_is_called_by_its_column(tmp_path: Path) -> None:
    """Whatever its folder is called, and only where it is finished."""

    def taught(column: str, seed: int, weights: str, done: bool = True) -> Any:
        settings: dict[str, Any] = {group: {"name": group} for group in ("dataset", "learner", "method")}
        settings["prior"] = {"name": "rela_run", "run": weights}
        result = {"status": "finished", "prior": "rela_run", "prior_run": f"{weights}-folder", "settings": settings}
        result |= {"dataset": "digits", "learner": "resnet18", "method": "simclr", "budget": 0.5, "seed": seed}
        folder = tmp_path / f"{column}-{seed}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result))
        return SimpleNamespace(teacher=object(), missing="", done=done, run=SimpleNamespace(folder=folder))

    by_place = {
        (0, "CF10-T", 0.5): [taught("CF10-T", seed, "aa") for seed in (0, 1)],
        (0, "TIN-T", 0.5): [taught("TIN-T", 0, "bb")],
        (0, "IN1K-T", 0.5): [taught("IN1K-T", 0, "cc", done=False)],
        (0, "plain", 0.5): [SimpleNamespace(teacher=None, missing="", done=True, run=None)],
        (0, "CF10-T live", 0.5): [taught("CF10-T live", 0, "aa")],  # the same prior, whose name is CF10-T
        (1, "CF100-T", 0.5): [taught("CF100-T", 0, "dd")],
    }
    runs: Any = SimpleNamespace(by_place=by_place)
    assert name_options(runs, 0) == ["--name=aa-folder=CF10-T", "--name=bb-folder=TIN-T"]
    assert name_options(runs, 1) == ["--name=dd-folder=CF100-T"]


# ----------------------------------------------------------------------------------------------------------- end to end


def at_work_in(folder: Path) -> list[Path]:
    """The files below a folder that any process has open, by /proc."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            found.append(link.readlink())
    return [path for path in found if path.is_relative_to(folder)]


def stop_after_two_batches(words: tuple[str, ...]) -> int:
    """The exit status of a table that gets SIGTERM once the second of its processes is done."""
    process = warm.start(Path.cwd(), "reproduce", *words, "jobs=1", env=os.environ, before=few_images)
    while "  [2/" not in Path(process.files[0]).read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    return process.wait(90)


@pytest.mark.slow
def test_a_table_from_nothing_stopped_failing_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One table on its way: planned, stopped by SIGTERM, gone on with while a column fails, completed, found.

    The runs of SimCLR* fail since a folder of theirs is a file; the others are made, and the status is 1.
    """
    words = ("table1-cifar10", "profile=smoke", f"outputs={tmp_path}/runs", f"out={tmp_path}/out")
    out, runs = tmp_path / "out", tmp_path / "runs" / "runs"
    monkeypatch.setattr(tables, "SMOKE", tables.SMOKE)
    few_images()
    dry = reproduce(*words, "dry_run=1", before=few_images)
    assert dry.returncode == 0 and "2 to do" in dry.stdout and not runs.exists()

    planned = PlannedRuns(TABLES["table1-cifar10"]("smoke"), None, [f'paths.outputs="{tmp_path}/runs"'])
    star = planned.by_place[0, "SimCLR*", 1.0][0].run.folder
    star.parent.mkdir(parents=True)
    star.write_text("in the way")
    assert stop_after_two_batches(words) == 143
    assert at_work_in(tmp_path) == []

    failing = reproduce(*words, before=few_images)
    assert failing.returncode == 1, failing.stdout
    assert "failed: SimCLR*, budget 1, seed 0" in failing.stdout
    assert "2 cached" in failing.stdout, "what was done when it was stopped is not made again"
    assert "patches" in (out / "table.md").read_text()

    star.unlink()
    whole = reproduce(*words, before=few_images)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    table = (out / "table.md").read_text()
    assert "patches at 50% is above SimCLR on everything" in table
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert {"patches", "none"} <= {row["prior"] for row in rows}
    assert (out / "report.html").stat().st_size > 10_000
    assert list((out / "plots").glob("*.svg")) and list((out / "plots").glob("*.png"))

    stamps = {path: path.stat().st_mtime_ns for path in runs.glob("digits-*/backbone.safetensors")}
    assert len(stamps) == 6
    again = reproduce(*words, before=few_images)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert (out / "table.md").read_text() == table
