"""The four stages in a row: reuse or make each artifact, and write down what it cost.

    images -> extract -> transport -> train -> probe -> result.json

Importing this module does not import torch, and a run that is found finished never does.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.config.parts import find
from rela_cli.config.schema import Config
from rela_cli.data.base import Dataset
from rela_cli.distributed import pulse, ranks
from rela_cli.errors import ConfigError, NonFiniteError, RelaError
from rela_cli.machine.signals import stoppable
from rela_cli.pipeline import preflight
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.screen import say, show_plan, show_result, show_targets
from rela_cli.store.disk import disk_errors
from rela_cli.store.entries import Entry, sweep_up
from rela_cli.store.files import Facts, keep_damaged, provenance, write_json
from rela_cli.store.integrity import damage
from rela_cli.store.locks import RunLock
from rela_cli.store.notices import warn
from rela_cli.store.secrets import redact
from rela_cli.store.versions import STAGES
from rela_cli.weights import locate, run_folder, seen

if TYPE_CHECKING:
    from rela_cli.training.checkpoint import Checkpoints, Saved


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
    if config.runtime.dry_run:
        return planned(config, until)
    with ranks.joined(config.runtime.device):
        work = ranks.one_first(lambda: prepared(config, until))
        folder = work.folder if until in ("train", "probe") else None
        pipeline = Pipeline(work, command)
        if not ranks.agree(is_open(work, until)):
            if folder and ranks.is_first():
                pipeline.settle()
            return Outcome("found", folder)
        pipeline.execute(until)
        return Outcome("run", folder)


def planned(config: Config, until: str) -> Outcome:
    """runtime.dry_run=true: the plan, and nothing is done."""
    work = Run(config)
    show_plan(work, work.plan(until))
    say("  a dry run: nothing was done")
    return Outcome("planned", None)


def prepared(config: Config, until: str) -> Run:
    """The run; the old one out of its way where that was asked for."""
    work = Run(config)
    wants_new = until in ("train", "probe") and config.resume == "never" and ranks.is_first()
    if wants_new and (aside := work.set_aside()):
        say(f"set aside: {aside}")
    return work


def missing(config: Config, until: str) -> Path | None:
    """The folder of a run of which something is still to be made; processes that find nothing to do need no start."""
    work = Run(config)
    work.check_force()
    is_new = config.resume == "never" or any(step.state == "to do" for step in work.plan(until))
    return work.folder if is_new else None


def is_open(work: Run, until: str) -> bool:
    """Show the plan; whether anything is to be done, and can be. For rank 0, whose word counts."""
    if not ranks.is_first():
        return False
    work.check_force()
    steps = work.plan(until)
    show_plan(work, steps)
    if labels := seen.note(work.config.prior, work.dataset):
        say(f"  labels    {labels}")
    if not any(step.state == "to do" for step in steps):
        return False
    preflight.check(work, until)
    sweep_up(work.outputs / "cache")
    return True


def is_whole(entry: Entry) -> bool:
    """Whether an entry is there, contents and all; then what it was made of need not be read."""
    return damage(entry.folder, contents=True) is None


def make(entry: Entry, fill: Callable[[Path | None], Facts], needed: int | None = None, goes_on: bool = False) -> None:
    """Make an entry unless it is there. Several ranks fill it together, but only rank 0 has a folder to write to."""
    if not ranks.is_first():
        if ranks.agree(False):
            fill(None)
        ranks.agree(None)
        return
    begun = []

    def begin(folder: Path) -> Facts:
        begun.append(ranks.agree(True))
        return fill(folder)

    entry.make(begin, needed, goes_on)
    if not begun:
        ranks.agree(False)
    ranks.agree(None)  # it is there, for everybody


class Pipeline:
    """Makes what a run is missing. `spent` is what this call cost; what an artifact cost is in its own manifest."""

    def __init__(self, work: Run, command: str) -> None:
        self.run, self.config, self.command = work, work.config, command
        self.spent = dict.fromkeys(STAGES, 0.0)
        self.tried: int | None = None  # the image size that the learner has been tried at
        self.taking_over: Facts | None = None  # by force: what the manifest will say once the folder is this run's

    def execute(self, until: str) -> None:
        """All stages up to `until`. Interrupted or failed, the manifest says so, and finished stages stay."""
        with stoppable(self.run.standing):
            if until in ("extract", "transport"):
                self.make_targets(until)
                show_targets(self.run)
                return
            with uncollected():  # torch and the libraries come in here
                self.check_labels()
                self.check_network()
                self.check_learner()
                self.of_prior = self.about_prior()  # its files may be gone when the result is written
            with RunLock(self.run.folder, self.command) if ranks.is_first() else nullcontext():
                self.taking_over = self.by_force() if ranks.is_first() else None
                self.note("running", reason=None, non_finite=None)
                (self.run.folder / "traceback.txt").unlink(missing_ok=True)
                ranks.agree(None)
                try:
                    with disk_errors(self.run.folder):
                        self.make_run()
                except BaseException as error:
                    self.note_failure(error)
                    raise

    def settle(self) -> None:
        """Nothing is missing; but the prior's card may say something else today.

        And killed right behind its last file, a run has not said yet that it is finished.
        """
        self.relabel()
        if self.run.manifest.get("status") == "finished":
            return
        try:
            with RunLock(self.run.folder, self.command), disk_errors(self.run.folder):
                self.note("finished", reason=None)
                point_latest(self.run.folder)
        except RelaError as error:  # another process is at it, or the folder is read-only: what matters is there
            warn(str(error))

    def relabel(self) -> None:
        """Bring the record up to what the prior's card says today: it changes what a number means, and no number."""
        result = self.run.result
        if not result or seen.is_right(result, self.config.prior, self.run.dataset):
            return
        facts = seen.label_facts(self.config.prior, self.run.dataset, self.labels_used())
        try:
            with RunLock(self.run.folder, self.command), disk_errors(self.run.folder):
                write_json(self.run.folder / "result.json", {**result, **facts})
                self.note("finished")  # config.yaml holds the card
        except RelaError as error:
            warn(f"the labels that the prior has seen could not be corrected in {self.run.folder}: {error}")
            return
        words = ", ".join(facts["prior_labels_seen"]) or ("unknown" if facts["labels_unknown"] else "none")
        say(f"  corrected result.json: labels that the prior has seen: {words}")

    def check_labels(self) -> None:
        """Before any work: a method that uses labels has some.

        Raises:
            ConfigError: the dataset has none.
        """
        if self.run.trained is not None or self.run.dataset.classes is not None:
            return
        if getattr(find(self.config.method), "uses_labels", False):
            raise ConfigError(
                f"method={self.config.method.name} needs labels and dataset={self.config.dataset.name} has none: "
                f"{self.run.dataset.why_unprobed}. Sort the train images into one folder a class, or say method=simclr"
            )

    def check_network(self) -> None:
        """Before any work: the network that will be probed is one that the method has.

        Raises:
            ConfigError: a target network is wanted and there is none.
        """
        from rela_cli.methods.base import Method

        if self.config.probe.network == "online":
            return
        if getattr(find(self.config.method), "networks", None) is Method.networks:
            raise ConfigError(
                f"method={self.config.method.name} has no {self.config.probe.network} network to probe: "
                "say probe.network=online, or a method with one (byol, dino, moco_v3)"
            )

    def check_learner(self) -> None:
        """Before any work, and before the run has a folder: the learner takes these images, and can be kept.

        Where only decoding tells how large images are, `make_run` asks again.

        Raises:
            ConfigError: it cannot be built, trained, saved or loaded.
        """
        find(self.config.learner)
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
        if not self.config.checkpoint.keep and ranks.is_first():
            self.checkpoints().clear()
        self.make_result()
        self.note("finished")
        if ranks.is_first():
            point_latest(self.run.folder)
            show_result(self.run)

    # --------------------------------------------------------------------------------------- stages 1 and 2

    def make_images(self) -> None:
        """Decode once; later starts map the arrays."""
        from rela_cli.data.batches.cache import write_images

        fill = lambda folder: write_images(self.run.dataset, folder) if folder else {}  # noqa: E731
        make(self.run.images, fill, preflight.image_bytes(self.run))

    def make_targets(self, until: str) -> None:
        """Images, features and targets, each once for all runs that share them."""
        self.make_images()
        if self.config.is_plain or (until == "transport" and ranks.agree(is_whole(self.run.targets))):
            return
        make(self.run.features, self.extract, goes_on=True)
        if until == "transport":
            make(self.run.targets, self.transport)

    def extract(self, folder: Path | None) -> Facts:
        from rela_cli.data.batches.cache import read_split, read_stats
        from rela_cli.stages.extract import extract

        images = self.run.images
        with self.clock("extract"):
            dataset = self.run.dataset
            splits = {name: split for name in dataset.splits if (split := read_split(images, name, dataset))}
            return extract(self.config, splits, read_stats(images), folder)

    def transport(self, folder: Path | None) -> Facts:
        from rela_cli.stages.transport import transport

        with self.clock("transport"):
            return transport(self.config, self.run.features.folder, folder)

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
            self.tried, self.width = size, feature_dim(backbone)
        return self.width

    def make_backbone(self, width: int) -> None:
        """Train, and write down that it is done and what it cost."""
        from rela_cli.data.batches.cache import read_split, read_stats
        from rela_cli.stages.train import read_targets, train
        from rela_cli.training.logger import open_logger
        from rela_cli.training.logs import Metrics

        split = read_split(self.run.images, "train", self.run.dataset)
        assert split is not None
        targets = None if self.config.is_plain else read_targets(self.run.targets, width)
        checkpoints = self.checkpoints()
        saved = ranks.one_first(lambda: self.resume(checkpoints))
        logs = self.run.folder / "metrics.jsonl" if ranks.is_first() else Path(os.devnull)
        with (
            self.clock("train"),
            open_logger(self.config, self.run.folder) as forward,
            Metrics(logs, forward) as metrics,
        ):
            stats = read_stats(self.run.images)
            facts = train(self.config, self.run.lengths, split, targets, stats, checkpoints, saved, metrics)
        if ranks.is_first():
            facts["files"] = run_folder.recorded(self.run.folder)
        self.note("trained", train=facts)
        ranks.agree(None)  # the backbone and what the manifest says of it are there, for everybody

    def checkpoints(self) -> Checkpoints:
        from rela_cli.training.checkpoint import Checkpoints

        return Checkpoints(self.run.folder, self.config.checkpoint.every_seconds, self.take_over)

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
            self.note("running", resumes=[*self.run.manifest.get("resumes", []), entry])
        return saved

    def by_force(self) -> Facts | None:
        """What goes into the manifest when another run is gone on with under these settings; None if it is this run."""
        changed = self.run.differences()
        if not changed:
            return None
        entry = {"when": provenance()["created"], "changed": {key: list(pair) for key, pair in changed.items()}}
        return {"forced": [*self.run.manifest.get("forced", []), entry]}

    # --------------------------------------------------------------------------------------------- stage 4

    def make_result(self) -> None:
        """Probe what is missing and write result.json, old numbers kept."""
        old = self.run.result or {}
        numbers, baselines = dict(old.get("probe", {})), dict(old.get("baselines") or {})
        cost = {account: old.get(account, {}).get("probe", 0) for account in ("seconds", "flops")}
        if missing := ranks.agree(self.run.missing_probes()):
            self.make_images()
            with self.clock("probe"):
                fresh, spent = self.probe(missing)
            numbers |= fresh
            cost = {account: cost[account] + spent[account] for account in cost}
        if self.run.can_probe and self.config.probe.baselines:
            self.probe_baselines(baselines)
        if ranks.is_first():
            keep_damaged(self.run.folder / "result.json")
            write_json(self.run.folder / "result.json", self.record(numbers, baselines, cost))

    def probe(self, protocols: list[str]) -> tuple[Facts, Facts]:
        """The trained backbone under some protocols: numbers, and what they cost."""
        from rela_cli.stages.probe import backbone_task, probes

        run_folder.check_backbone(self.run.folder, self.config.probe.network)
        task, cost = backbone_task(self.config, self.run.folder, self.run.images, self.run.dataset)
        network, numbers = self.config.probe.network, {}
        for protocol, number in probes(task, protocols, self.config.probe).items():
            cost["seconds"] += number.get("seconds", 0.0)
            settings = self.run.probe_settings(protocol)
            numbers[self.run.probe_key(protocol)] = {**number, "network": network, "settings": settings}
        return numbers, cost

    def probe_baselines(self, found: Facts) -> None:
        """Add the untrained learner and the prior alone, under the same protocols; each is made once, then cached."""
        from rela_cli.stages.probe import prior_task, untrained_task

        learner = {"learner": self.config.learner.identity, "seed": self.config.seed}
        fresh = partial(untrained_task, self.config, self.run.images, self.run.dataset)
        found["untrained"] = {**found.get("untrained", {}), **self.baselines("untrained", fresh, **learner)}
        found.setdefault("prior_alone", None if self.config.is_plain else {})
        if not self.config.is_plain:
            self.make_targets("transport")
            dim = (self.run.trained or {})["target_dim"]
            prior = partial(prior_task, self.run.targets, dim, self.run.images)
            found["prior_alone"] |= self.baselines("prior_alone", prior, targets=self.run.targets.hash, dim=dim)

    def baselines(self, what: str, make_task: Callable[[], tuple[Any, Facts]], **of: Any) -> Facts:
        """A baseline's number under each protocol, from the cache or made now; its features are made once for all."""
        from rela_cli.stages.probe import probes

        entries = {protocol: self.run.baseline(what, protocol, **of) for protocol in self.config.probe.protocols}
        missing = ranks.agree([protocol for protocol, entry in entries.items() if not entry.manifest])
        task, numbers = cache(make_task), {}

        def fill(protocol: str, _: Path | None) -> Facts:
            self.make_images()
            if protocol not in numbers:
                together = ranks.world() > 1 and protocol in missing  # then several ranks fit them side by side
                numbers.update(probes(task()[0], missing if together else [protocol], self.config.probe))
            return {"number": {**numbers[protocol], "network": what}, **task()[1]}

        for protocol, entry in entries.items():
            make(entry, partial(fill, protocol))
        return {protocol: dict((entry.manifest or {})["number"]) for protocol, entry in entries.items()}

    # -------------------------------------------------------------------------------------------- accounts

    def labels_used(self) -> list[str]:
        """The label set that the method itself has trained with."""
        uses = getattr(find(self.config.method), "uses_labels", False)
        return [str(self.run.dataset.label_set)] if uses else []

    def about_prior(self) -> Facts:
        """What result.json says of the prior."""
        prior = self.config.prior
        return {
            "prior": locate.shown_name(prior),
            **({"prior_run": run_folder.run_name(prior)} if prior.name == "rela_run" else {}),
            **seen.label_facts(prior, self.run.dataset, self.labels_used()),
        }

    def record(self, numbers: Facts, baselines: Facts, probe_cost: Facts) -> Facts:
        """result.json. Costs are what making each artifact cost, also when it came from the cache."""
        c, work, facts = self.config, self.run, self.run.trained or {}
        costs: dict[str, Facts] = {"extract": {}, "transport": {}, "train": facts, "probe": probe_cost}
        if not c.is_plain:
            costs |= {"extract": work.features.manifest or {}, "transport": work.targets.manifest or {}}
        names = ("steps", "samples_seen", "switch_step", "phase1_steps", "feature_dim", "target_dim", "collapsed")
        return {
            "status": "finished",
            "name": work.name,
            "fingerprint": work.hash,
            **{group: getattr(c, group).name for group in ("dataset", "learner", "method")},
            "called": {**work.called, **locate.file_name(c.prior)},
            **self.of_prior,
            "transport": None if c.is_plain else c.transport.name,
            **{key: getattr(c, key) for key in ("budget", "seed", "epochs", "batch_size")},
            "train_samples": work.lengths.train_samples,
            "test_samples": work.dataset.count("test"),
            "classes": len(work.dataset.classes) if work.dataset.classes else None,
            **{name: facts.get(name) for name in names},
            "probe": numbers,
            **({"skipped": skipped(work.dataset)} if work.dataset.on_error == "skip" else {}),
            **({} if work.can_probe else {"probe_skipped": work.dataset.why_unprobed}),
            "baselines": baselines,
            "seconds": {stage: costs[stage].get("seconds", 0.0) for stage in STAGES},
            "seconds_now": self.spent,
            "flops": {stage: costs[stage].get("flops", 0) for stage in STAGES},
            "peak_memory_bytes": facts.get("peak_memory_bytes"),
            **{name: facts.get(name) for name in ("device", "precision", "threads", "world_size", "batch_per_rank")},
            "settings": work.settings,
        }

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Put the seconds of a block on a stage's account."""
        started = time.perf_counter()
        pulse.at(f"stage {stage}")
        try:
            yield
        finally:
            self.spent[stage] += time.perf_counter() - started

    def note(self, status: str, **facts: Any) -> None:
        """Into the manifest; while a run is being taken over by force it waits for the first checkpoint."""
        if not ranks.is_first():
            return
        if self.taking_over is not None and status == "running":
            self.taking_over |= facts
            return
        self.take_over()
        self.run.note(status, self.command, **facts)

    def take_over(self) -> None:
        """From the first checkpoint under these settings on the folder is this run's; until then it stays as it was."""
        if self.taking_over is not None:
            facts, self.taking_over = self.taking_over, None
            self.run.note("running", self.command, **facts)

    def note_failure(self, error: BaseException) -> None:
        """Status and reason into the manifest, the traceback into a file of its own."""
        if not ranks.is_first():
            return
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            (self.run.folder / "traceback.txt").write_text(redact(traceback.format_exc()), encoding="utf-8")
            if self.taking_over is not None:
                warn(f"{self.run.folder} stays the run that it was: resume=force ended before its first checkpoint")
                return
            facts = {"non_finite": error.facts} if isinstance(error, NonFiniteError) else {}
            self.run.note(status, self.command, reason=str(error) or type(error).__name__, **facts)
        except Exception as second:  # a full disk, say, must not hide the first error
            error.add_note(f"and then: {second}") if hasattr(error, "add_note") else None


@contextmanager
def uncollected() -> Iterator[None]:
    """For imports: of the million objects that they make all stay, and looking for garbage is a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def skipped(dataset: Dataset) -> Facts:
    """How many images were left out because they cannot be decoded, which, and why."""
    return {"count": sum(map(len, dataset.skipped.values())), "files": dataset.skipped}


def point_latest(folder: Path) -> None:
    """`latest` beside the runs points to the newest finished one; a convenience, so it never fails a run."""
    link = folder.parent / "latest"
    try:
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name)
    except OSError:
        pass
