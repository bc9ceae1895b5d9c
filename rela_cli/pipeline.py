"""The four stages in a row: reuse or make each artifact, and write down what it cost.

    images -> extract -> transport -> train -> probe

Importing this module does not import torch, and a run that is found finished never does.
"""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rela_cli.artifacts import Entry, Facts, RunLock, file_sha256, fingerprint, provenance, read_json, write_atomic, write_json
from rela_cli.config import Config, Lengths, Part, lengths, to_tree
from rela_cli.data.datasets import Dataset
from rela_cli.errors import RelaError, Stopped
from rela_cli.parts import build

STAGES = ("extract", "transport", "train", "probe")
VERSIONS = {"images": 1, "extract": 1, "transport": 1, "train": 1, "probe": 1}  # bump when a stage's bytes change


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
    from rela_cli.screen import show_plan

    work = Run(config, command)
    plan = work.plan(until)
    show_plan(work, plan)
    if not any(step.todo for step in plan):
        return Outcome("found", work.folder if until in ("train", "probe") else None)
    return work.execute(until)


@dataclass(frozen=True)
class Step:
    """One line of the plan."""

    stage: str
    todo: bool
    note: str


class Run:
    """One run's artifacts: what they are called, which are there, and how to make the rest."""

    def __init__(self, config: Config, command: str = "") -> None:
        self.config, self.command = config, command
        self.outputs = Path(config.paths.outputs).expanduser()
        self.dataset: Dataset = build(config.dataset)
        self.lengths: Lengths = lengths(config, self.dataset.count("train"))
        self.seconds_now = dict.fromkeys(STAGES, 0.0)

    # ------------------------------------------------------------------------------------------- names

    @cached_property
    def images(self) -> Entry:
        """Decoded pixels and labels."""
        return self.entry("images", {"version": VERSIONS["images"], **self.dataset.identity})

    @cached_property
    def features(self) -> Entry:
        """The prior's outputs. Depends on the pixels and on the prior's weights, not on their path."""
        return self.entry("features", {"version": VERSIONS["extract"], "images": self.images.hash, "prior": weighed(self.config.prior)})

    @cached_property
    def targets(self) -> Entry:
        """What a learner is matched to."""
        spec = {"version": VERSIONS["transport"], "features": self.features.hash, "transport": self.config.transport.identity}
        return self.entry("targets", spec)

    def baseline(self, what: str, protocol: str, extra: dict[str, Any]) -> Entry:
        """A probe of something that was not trained by us."""
        settings = {k: v for k, v in to_tree(self.config)["probe"].items() if k.startswith(f"{protocol}_")}
        spec = {"version": VERSIONS["probe"], "what": what, "protocol": protocol, **settings, "images": self.images.hash, **extra}
        return self.entry("baselines", spec)

    def entry(self, kind: str, spec: dict[str, Any]) -> Entry:
        return Entry(kind, spec, self.outputs / "cache")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that changes the backbone, and nothing else."""
        tree = to_tree(self.config)
        groups = ["dataset", "prior", "learner", "method", "optimizer", "budget", "epochs", "batch_size", "seed"]
        groups += [] if self.config.is_plain else ["transport", "matching", "switch"]
        tree["prior"] = weighed(self.config.prior)
        return {"version": VERSIONS["train"], **{group: tree[group] for group in groups}}

    @cached_property
    def hash(self) -> str:
        """8 digits over the settings and the images themselves (so the place of a dataset does not count)."""
        settings = {**self.settings, "dataset": {"images": self.images.hash, "flip": self.dataset.flip}}
        return fingerprint(settings)[:8]

    @cached_property
    def name(self) -> str:
        c = self.config
        return f"{c.dataset.name}-{c.prior.name}-{c.learner.name}-{c.method.name}-b{c.budget:g}-s{c.seed}"

    @cached_property
    def folder(self) -> Path:
        if self.config.paths.run:
            return Path(self.config.paths.run).expanduser()
        return self.outputs / "runs" / f"{self.name}-{self.hash}"

    # -------------------------------------------------------------------------------------------- plan

    @property
    def manifest(self) -> Facts:
        """The run's own manifest, empty when there is none for these settings."""
        manifest = read_json(self.folder / "manifest.json") or {}
        return manifest if manifest.get("hash") == self.hash else {}

    @property
    def trained(self) -> Facts | None:
        """What training had to say, once it is done."""
        facts = self.manifest.get("train")
        return facts if facts and (self.folder / "backbone.safetensors").exists() else None

    @property
    def result(self) -> Facts | None:
        """result.json of these very settings."""
        result = read_json(self.folder / "result.json")
        return result if result and result.get("fingerprint") == self.hash else None

    @property
    def can_probe(self) -> bool:
        return self.dataset.why_unprobed is None

    def probe_key(self, protocol: str) -> str:
        """The name of a number in result.json."""
        network = self.config.probe.network
        return protocol if network == "online" else f"{protocol}@{network}"

    def missing_probes(self) -> list[str]:
        """Protocols that result.json lacks."""
        done = (self.result or {}).get("probe", {})
        return [p for p in self.config.probe.protocols if self.probe_key(p) not in done] if self.can_probe else []

    def plan(self, until: str) -> list[Step]:
        """The stages up to `until`: what is there, what is to do."""
        finished = self.trained is not None
        wanted = STAGES[: STAGES.index(until) + 1]
        rest = self.missing_probes() or ([] if self.result else ["result.json"])
        steps = [
            Step("extract", not finished and self.features.manifest is None, self.config.prior.name),
            Step("transport", not finished and self.targets.manifest is None, self.config.transport.name),
        ]
        if self.config.is_plain:
            steps = [Step(s.stage, False, "plain method: no prior") for s in steps]
        steps += [
            Step("train", not finished, self.lengths_note),
            Step("probe", bool(rest), ", ".join(self.config.probe.protocols) if self.can_probe else str(self.dataset.why_unprobed)),
        ]
        return [step for step in steps if step.stage in wanted]

    @property
    def lengths_note(self) -> str:
        n = self.lengths
        return f"{n.total_steps} steps of {self.config.batch_size}; {n.subset_size} of {n.train_samples} samples an epoch, {self.config.epochs} epochs"

    # -------------------------------------------------------------------------------------------- work

    def execute(self, until: str) -> Outcome:
        """Make what is missing. Interrupted or failed, the run's manifest says so and finished stages stay."""
        from rela_cli.runtime import stoppable

        with stoppable():
            if until in ("extract", "transport"):
                self.make_targets(until)
                return Outcome("run", None)
            with RunLock(self.folder):
                self.set_aside_other()
                self.note_status("running")
                try:
                    self.make_run()
                except BaseException as error:
                    self.note_failure(error)
                    raise
        return Outcome("run", self.folder)

    def make_run(self) -> None:
        from rela_cli.screen import show_result

        if self.trained is None:
            self.make_targets("transport")
            self.make_backbone()
        self.make_result()
        self.note_status("finished")
        point_latest(self.folder)
        show_result(self)

    def make_images(self) -> None:
        from rela_cli.data.cache import write_images

        self.images.make(lambda folder: write_images(self.dataset, folder))

    def make_targets(self, until: str) -> None:
        """Images, features and targets, each once for all runs that share them."""
        from rela_cli.data.cache import read_split, read_stats
        from rela_cli.stages.extract import extract
        from rela_cli.stages.transport import transport

        self.make_images()
        if self.config.is_plain:
            return
        if self.features.manifest is None:
            train, test = read_split(self.images, "train"), read_split(self.images, "test")
            assert train is not None
            with self.clock("extract"):
                self.features.make(lambda folder: extract(self.config, train, test, read_stats(self.images), folder))
        if until == "transport":
            with self.clock("transport"):
                self.targets.make(lambda folder: transport(self.config, self.features.folder, folder))

    def make_backbone(self) -> None:
        """Train, and write down in the manifest that it is done and what it cost."""
        from safetensors.torch import load_file

        from rela_cli.data.cache import read_split, read_stats
        from rela_cli.logger import open_logger
        from rela_cli.runtime import Metrics
        from rela_cli.stages.train import train

        split = read_split(self.images, "train")
        assert split is not None
        targets = None
        if not self.config.is_plain:
            facts = self.targets.manifest or {}
            targets = load_file(self.targets.folder / "train.safetensors")["targets"]
            targets = targets[:, : self.learner_dim] if facts["ordered"] else targets
        forward, close = open_logger(self.config, self.folder)
        metrics = Metrics(self.folder / "metrics.jsonl", forward)
        try:
            with self.clock("train"):
                facts = train(self.config, self.lengths, split, targets, read_stats(self.images), self.folder, metrics)
        finally:
            metrics.close()
            close()
        self.note_status("trained", train=facts)

    @cached_property
    def learner_dim(self) -> int:
        """The learner's feature_dim."""
        from rela_cli.learners.build import build_backbone

        return int(build_backbone(self.config).feature_dim)  # type: ignore[arg-type]

    def make_result(self) -> None:
        """Probe what is missing, then write result.json: cost from the artifacts' manifests, also when cached."""
        old = self.result or {}
        probes, baselines = dict(old.get("probe", {})), old.get("baselines") or {}
        cost = {"seconds": old.get("seconds", {}).get("probe", 0.0), "flops": old.get("flops", {}).get("probe", 0)}
        if missing := self.missing_probes():
            self.make_images()
            with self.clock("probe"):
                numbers, spent = self.run_probes(missing)
            probes |= numbers
            cost = {k: cost[k] + spent[k] for k in cost}
            if self.config.probe.baselines:
                baselines = merge(baselines, self.run_baselines())
        write_json(self.folder / "result.json", self.result_record(probes, baselines, cost))

    def run_probes(self, protocols: list[str]) -> tuple[Facts, Facts]:
        """The trained backbone under some protocols: numbers, and what they cost."""
        from rela_cli.data.cache import read_split, read_stats
        from rela_cli.stages.probe import backbone_features, probe

        train, test = read_split(self.images, "train"), read_split(self.images, "test")
        assert train is not None and test is not None
        task, cost = backbone_features(self.config, self.folder, train, test, read_stats(self.images))
        numbers = {}
        for protocol in protocols:
            numbers[self.probe_key(protocol)] = {**probe(task, protocol, self.config.probe), "network": self.config.probe.network}
        cost["seconds"] += sum(n["seconds"] for n in numbers.values())
        return numbers, cost

    def run_baselines(self) -> Facts:
        """The untrained learner and the prior alone under the same protocols; each made once, then cached."""
        learner = {"learner": self.config.learner.identity, "seed": self.config.seed}
        found: Facts = {"untrained": {}, "prior_alone": None if self.config.is_plain else {}}
        for protocol in self.config.probe.protocols:
            found["untrained"][protocol] = self.run_baseline(self.baseline("untrained", protocol, learner))
            if not self.config.is_plain and self.targets.manifest is not None:
                facts = self.targets.manifest
                dim = min(self.learner_dim, facts["dim"]) if facts["ordered"] else facts["dim"]
                spec = {"targets": self.targets.hash, "dim": dim}
                found["prior_alone"][protocol] = self.run_baseline(self.baseline("prior_alone", protocol, spec))
        return found

    def run_baseline(self, entry: Entry) -> Facts:
        """One number of a baseline, from the cache or made now."""
        from rela_cli.data.cache import read_split, read_stats
        from rela_cli.stages.probe import probe, target_features, untrained_features

        def fill(folder: Path) -> Facts:
            train, test = read_split(self.images, "train"), read_split(self.images, "test")
            assert train is not None and test is not None
            if entry.spec["what"] == "untrained":
                task, cost = untrained_features(self.config, train, test, read_stats(self.images))
            else:
                task, cost = target_features(self.targets.folder, entry.spec["dim"], train, test)
            network = "online" if entry.spec["what"] == "untrained" else "prior"
            return {"number": {**probe(task, entry.spec["protocol"], self.config.probe), "network": network}, **cost}

        entry.make(fill)
        return dict((entry.manifest or {})["number"])

    def result_record(self, probes: Facts, baselines: Facts, probe_cost: Facts) -> Facts:
        """Everything that a table or a reader wants to know of this run."""
        c, facts = self.config, self.trained or {}
        costs = {"extract": self.features.manifest, "transport": self.targets.manifest} if not c.is_plain else {}
        spent = {stage: costs.get(stage) or {} for stage in ("extract", "transport")} | {"train": facts, "probe": probe_cost}
        return {
            "status": "finished",
            "name": self.name,
            "fingerprint": self.hash,
            "dataset": c.dataset.name,
            "prior": c.prior.name,
            "transport": None if c.is_plain else c.transport.name,
            "learner": c.learner.name,
            "method": c.method.name,
            "budget": c.budget,
            "seed": c.seed,
            "epochs": c.epochs,
            "batch_size": c.batch_size,
            "train_samples": self.lengths.train_samples,
            "test_samples": self.dataset.count("test"),
            "classes": len(self.dataset.classes) if self.dataset.classes else None,
            **{k: facts.get(k) for k in ("steps", "samples_seen", "switch_step", "phase1_steps", "feature_dim", "target_dim")},
            "probe": probes,
            **({} if self.can_probe else {"probe_skipped": self.dataset.why_unprobed}),
            "baselines": baselines,
            "seconds": {stage: spent[stage].get("seconds", 0.0) for stage in STAGES},
            "seconds_now": self.seconds_now,
            "flops": {stage: spent[stage].get("flops", 0) for stage in STAGES},
            "peak_memory_bytes": facts.get("peak_memory_bytes"),
            "device": facts.get("device"),
            "settings": self.settings,
        }

    # ------------------------------------------------------------------------------------- bookkeeping

    def clock(self, stage: str) -> Clock:
        return Clock(self.seconds_now, stage)

    def note_status(self, status: str, **facts: Any) -> None:
        """Bring the run's manifest up to date."""
        from rela_cli.runtime import versions

        fresh = {"hash": self.hash, "command": self.command or " ".join(sys.argv), "versions": versions()}
        inputs = {"images": self.images.hash}
        if not self.config.is_plain:
            inputs |= {"features": self.features.hash, "targets": self.targets.hash}
        manifest = {**self.manifest, **fresh, "inputs": inputs, "status": status, **provenance(), **facts}
        write_json(self.folder / "manifest.json", manifest)
        text = yaml.safe_dump(plain(to_tree(self.config)), sort_keys=False)
        write_atomic(self.folder / "config.yaml", lambda path: path.write_text(text) and None)

    def note_failure(self, error: BaseException) -> None:
        """Status and reason into the manifest; the traceback into its own file."""
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        try:
            self.note_status(status, reason=str(error) or type(error).__name__)
            (self.folder / "traceback.txt").write_text(traceback.format_exc())
        except OSError:
            pass  # a full disk must not hide the first error

    def set_aside_other(self) -> None:
        """A folder named by hand may hold another run: refuse rather than mix."""
        other = read_json(self.folder / "manifest.json")
        if other and other.get("hash") != self.hash:
            raise RelaError(f"paths.run={self.folder} holds another run ({other.get('hash')}); name another folder")


class Clock:
    """Adds the seconds of a block to an account."""

    def __init__(self, account: dict[str, float], stage: str) -> None:
        self.account, self.stage = account, stage

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.account[self.stage] += time.perf_counter() - self.started


def weighed(part: Part) -> dict[str, Any]:
    """A part's identity with a weights file replaced by what is in it."""
    identity = dict(part.identity)
    path = Path(str(identity.get("weights") or "")).expanduser()
    if identity.get("weights") and path.is_file():
        identity["weights"] = file_sha256(path)
    return identity


def merge(old: Facts, new: Facts) -> Facts:
    """New numbers beside old ones, one level down."""
    return {k: None if v is None else {**(old.get(k) or {}), **v} for k, v in new.items()}


def plain(value: Any) -> Any:
    """Lists for tuples, so that any YAML reader takes it."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def point_latest(folder: Path) -> None:
    """`latest` beside the runs points to the newest finished one; a convenience, so it never fails a run."""
    link = folder.parent / "latest"
    try:
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(folder.name)
    except OSError:
        shutil.rmtree(link, ignore_errors=True) if link.is_symlink() else None
