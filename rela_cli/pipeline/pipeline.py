"""The four stages in a row: reuse or make each artifact, and write down what it cost.

    images -> extract -> transport -> train -> probe -> result.json

Importing this module does not import torch, and a run that is found finished never does.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli.config.parts import import_target
from rela_cli.config.schema import Config
from rela_cli.distributed import pulse, ranks
from rela_cli.machine import memory
from rela_cli.machine.signals import stoppable
from rela_cli.pipeline import preflight, tokens
from rela_cli.pipeline.making import make_together
from rela_cli.pipeline.probing import Probing
from rela_cli.pipeline.result import Numbers, prior_facts, result_of
from rela_cli.pipeline.run import Run, check_forceable
from rela_cli.pipeline.run_record import RunRecord, point_latest, set_aside
from rela_cli.pipeline.screen import say, show_result, show_stages, show_targets
from rela_cli.pipeline.target_making import TargetMaking
from rela_cli.pipeline.to_do import has_work, stage_states, standing
from rela_cli.store.disk import disk_errors
from rela_cli.store.entries import sweep_up
from rela_cli.store.files import keep_damaged, provenance, write_json
from rela_cli.store.locks import RunLock
from rela_cli.store.notices import warn
from rela_cli.store.versions import STAGES
from rela_cli.weights import run_folder, seen

if TYPE_CHECKING:
    from rela_cli.data.batches.cache import ImageStats, Split
    from rela_cli.training.checkpoint import Checkpoints, Saved
    from rela_cli.training.goals import Goals


@dataclass(frozen=True)
class Outcome:
    """What a call did: "run" if there was any work, "found" if everything was there; and where it lies."""

    status: str
    folder: Path | None


def run(config: Config, until: str = "probe", command: str = "") -> Outcome:
    """Bring everything up to stage `until` into being.

    Raises:
        RelaError: whatever a user should read; its exit_code says of which kind.
    """
    preflight.check_protocols(config)
    if config.runtime.dry_run:
        return dry_run(config, until)
    with ranks.process_group(config.runtime.device, config.runtime.hang_minutes, warn):
        run = ranks.rank_0_first(lambda: open_run(config, until))
        folder = run.folder if until in ("train", "probe") else None
        pipeline = Pipeline(run, command)
        if not ranks.agree(ranks.is_first() and is_to_start(run, until)):
            if folder:
                pipeline.record.mark_finished()
            return Outcome("found", folder)
        pipeline.execute(until)
        return Outcome("run", folder)


def dry_run(config: Config, until: str) -> Outcome:
    """runtime.dry_run=true: say what would be done, and do nothing."""
    run = Run(config)
    show_stages(run, stage_states(run, until))
    say("  a dry run: nothing was done")
    return Outcome("planned", None)


def open_run(config: Config, until: str) -> Run:
    """The run of a config. With resume=never rank 0 first renames the folder that the run had before."""
    run = Run(config)
    wants_new = until in ("train", "probe") and config.resume == "never" and ranks.is_first()
    if wants_new and (aside := set_aside(run)):
        say(f"set aside: {aside}")
    return run


def folder_with_work(config: Config, until: str) -> Path | None:
    """The folder of a run that has work to do, else None: then no further processes have to be started."""
    run = Run(config)
    check_forceable(run)
    return run.folder if config.resume == "never" or has_work(stage_states(run, until)) else None


def is_to_start(run: Run, until: str) -> bool:
    """Show the stages; whether anything is to be done. Rank 0 asks this for all ranks.

    Raises:
        RelaError: something is to be done and cannot be: no checkpoint for resume=force, no room on the disk.
    """
    check_forceable(run)
    states = stage_states(run, until)
    show_stages(run, states)
    if labels := seen.note(run.config.prior, run.dataset):
        say(f"  labels    {labels}")
    if not has_work(states):
        return False
    preflight.check(run, until)
    sweep_up(run.outputs / "cache")
    return True


class Pipeline:
    """Makes what a run is missing. `spent` is what this call cost; what an artifact cost is in its own manifest."""

    def __init__(self, run: Run, command: str) -> None:
        self.run, self.config = run, run.config
        self.record = RunRecord(run, command)
        self.probing = Probing(run, self.make_images, lambda: self.make_targets("transport"))
        self.spent = dict.fromkeys(STAGES, 0.0)
        self.tried: int | None = None  # the image size that the learner has been tried at

    def execute(self, until: str) -> None:
        """All stages up to `until`. Interrupted or failed, the manifest says so, and finished stages stay."""
        with stoppable(partial(standing, self.run)):
            if until in ("extract", "transport"):
                self.check_memory(until)
                if self.config.has_tokens and self.run.shown_size is not None:
                    tokens.check_prior(self.run, self.run.shown_size, until)
                self.make_targets(until)
                show_targets(self.run)
                return
            with without_garbage_collection():  # torch and the libraries come in here
                preflight.check_labels(self.run)
                preflight.check_network(self.config)
                self.check_learner()
                self.prior_facts = prior_facts(self.run)  # the prior's files may be gone when the result is written
            with RunLock(self.run.folder, self.record.command) if ranks.is_first() else nullcontext():
                self.record.begin()
                ranks.agree(None)
                try:
                    with disk_errors(self.run.folder):
                        self.make_run()
                except BaseException as error:
                    self.record.write_failure(error)
                    raise

    def check_learner(self) -> None:
        """Before any work, and before the run has a folder: the learner takes these images, and can be kept.

        Where only decoding tells how large images are, `make_run` asks again.

        Raises:
            ConfigError: it cannot be built, trained, saved or loaded.
        """
        import_target(self.config.learner)
        size = None if self.run.trained is not None else self.run.shown_size
        if size is not None:
            self.learner_width(size)

    def make_run(self) -> None:
        """A trained backbone and its numbers."""
        if not ranks.agree(self.run.trained is not None):
            self.make_images()
            width = self.learner_width()
            self.make_targets("transport")
            self.make_backbone(width)
        else:
            self.check_memory("probe")
        if not self.config.checkpoint.keep and ranks.is_first():
            self.checkpoints().clear()
        self.make_result()
        self.record.write("finished")
        if ranks.is_first():
            point_latest(self.run.folder)
            show_result(self.run)

    def check_memory(self, until: str) -> None:
        """Before stages that no learner is tried out for; images are decoded first where their size is not known.

        Raises:
            RelaError: a stage up to `until` has no room.
        """
        from rela_cli.pipeline import enough_memory

        if ranks.agree(self.run.shown_size is None):
            self.make_images()
        if ranks.is_first():
            enough_memory.check(self.run, until)

    # --------------------------------------------------------------------------------------- stages 1 and 2

    def make_images(self) -> None:
        """Decode once; later starts map the arrays."""
        from rela_cli.data.batches.cache import write_images

        fill = lambda folder: write_images(self.run.dataset, folder) if folder else {}  # noqa: E731
        make_together(self.run.images, fill, preflight.image_bytes(self.run))

    def make_targets(self, until: str) -> None:
        """Images, features and targets, each once for all runs that share them."""
        self.make_images()
        if not self.config.is_plain:
            TargetMaking(self.run, self.clock).make(until)

    # --------------------------------------------------------------------------------------------- stage 3

    def learner_width(self, size: int | None = None) -> int:
        """The learner's feature_dim, once it has been trained for a step, saved and loaded at the images' size.

        A disk without room for its checkpoints says so too: they hold its weights and more. So does the memory.
        """
        from rela_cli.data.batches.cache import read_stats
        from rela_cli.learners.build import feature_dim
        from rela_cli.pipeline import enough_memory
        from rela_cli.training.checkpoint import tensor_bytes
        from rela_cli.training.trainee import tried_out

        size = size or read_stats(self.run.images).size
        if self.tried != size:
            classes = self.run.dataset.classes
            backbone = tried_out(self.config, size, len(classes) if classes else None)
            self.checkpoints().ensure_room(tensor_bytes(backbone.state_dict()))
            if ranks.is_first():
                enough_memory.check(self.run)
            if self.config.has_tokens:
                self.channels = tokens.channels_of(backbone, self.run, size)
                tokens.check_prior(self.run, size, "train")
            self.tried, self.width = size, feature_dim(backbone)
        return self.width

    def make_backbone(self, width: int) -> None:
        """Train, and write down that it is done and what it cost."""
        from rela_cli.data.batches.cache import read_split, read_stats
        from rela_cli.stages.train import train
        from rela_cli.training.logs import Metrics
        from rela_cli.training.trackers.run import open_trackers

        split = read_split(self.run.images, "train", self.run.dataset)
        assert split is not None
        checkpoints = self.checkpoints()
        saved = ranks.rank_0_first(lambda: self.resume(checkpoints))
        logs = self.run.folder / "metrics.jsonl" if ranks.is_first() else Path(os.devnull)
        with (
            self.clock("train"),
            open_trackers(self.config, self.run.folder) as forward,
            Metrics(logs, forward) as metrics,
        ):
            stats = read_stats(self.run.images)
            goals = None if self.config.is_plain else self.goals(split, stats, width)
            facts = train(self.config, self.run.lengths, split, goals, stats, checkpoints, saved, metrics)
        if ranks.is_first():
            facts["files"] = run_folder.recorded(self.run.folder)
        self.record.write("trained", train=facts)
        ranks.agree(None)  # the backbone and what the manifest says of it are there, for everybody

    def goals(self, split: Split, stats: ImageStats, width: int) -> Goals:
        """What phase 1 matches a learner of so many features to."""
        from rela_cli.data.batches.loader import side_of
        from rela_cli.stages.train import read_targets, read_tokens, read_views
        from rela_cli.training.goals import Goals
        from rela_cli.training.live import live_targets

        config, run = self.config, self.run
        targets = read_targets(run.targets, width)
        k, sides = targets.shape[1], (side_of(split.images), stats.size)
        folders = (run.features.folders, run.targets.folder)
        live = live_targets(config, split, stats, *folders, k) if config.is_live else None
        views = read_views(run.view_targets, k, config.seed) if config.has_views else None
        tokens = read_tokens(run.artifacts.token_targets, self.channels, *sides) if config.has_tokens else None
        return Goals(targets, live, views, tokens)

    def checkpoints(self) -> Checkpoints:
        from rela_cli.training.checkpoint import Checkpoints

        return Checkpoints(self.run.folder, self.config.checkpoint.every_seconds, self.record.take_over)

    def resume(self, checkpoints: Checkpoints) -> Saved | None:
        """The last good checkpoint, if there is one; said, written down, and the logs cut back to it."""
        saved = checkpoints.latest()
        if not ranks.is_first():
            return saved
        checkpoints.rewind(saved)
        if saved:
            say(f"  resumed at step {saved.step} of {self.run.lengths.total_steps}")
            entry = {"step": saved.step, "phase": saved.state["phase"], "when": provenance()["created"]}
            entry["threads"] = saved.threads  # of the steps before
            self.record.write("running", resumes=[*self.run.manifest.get("resumes", []), entry])
        return saved

    # --------------------------------------------------------------------------------------------- stage 4

    def make_result(self) -> None:
        """Probe what is missing and write result.json, old numbers kept."""
        numbers = Numbers.of_result(self.run.result or {})
        if missing := ranks.agree(self.run.missing_probes()):
            self.make_images()
            with self.clock("probe"):
                self.probing.add_own(numbers, missing)
        if self.run.can_probe and self.config.probe.baselines:
            self.probing.add_baselines(numbers.baselines)
        if ranks.is_first():
            keep_damaged(self.run.folder / "result.json")
            facts = result_of(self.run, self.prior_facts, numbers, self.spent)
            write_json(self.run.folder / "result.json", facts)

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Put the seconds of a block on a stage's account. It begins without what earlier ones have left in memory."""
        memory.give_back()
        started = time.perf_counter()
        pulse.at(f"stage {stage}")
        try:
            yield
        finally:
            self.spent[stage] += time.perf_counter() - started


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For imports: of the million objects that they make all stay, and looking for garbage is a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
