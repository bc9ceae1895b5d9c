"""What a run is: its artifacts and their names, its folder, and what is there. It reads and names; it writes nothing.

A run's folder is named by a hash over everything that changes its backbone and nothing else, so the same command
finds its own run again. Nothing here imports torch.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from rela_cli.config.identity import identity_of, without_idle
from rela_cli.config.lengths import Lengths, lengths
from rela_cli.config.reading import to_tree
from rela_cli.config.schema import RANDOM, Config, Part
from rela_cli.data.base import open_dataset
from rela_cli.data.efficient.dataset import Efficient
from rela_cli.distributed.ranks import norm_groups
from rela_cli.errors import MissingError, RelaError
from rela_cli.pipeline.artifacts import (
    Artifacts,
    GivenArtifacts,
    Source,
    artifacts,
    cut_of_views,
    kinds_of,
    map_of_tokens,
)
from rela_cli.pipeline.brought import Brought, settled
from rela_cli.pipeline.differences import MATCHING, RUN_SETTINGS, changed_settings, differences_text
from rela_cli.store.entries import Entry, entry_of
from rela_cli.store.files import Facts, fingerprint, load_json, read_json, reason_of, section
from rela_cli.store.names import called, run_called, slug
from rela_cli.store.notices import warn_once
from rela_cli.store.sealed import Damaged
from rela_cli.store.secrets import redact
from rela_cli.store.versions import VERSIONS
from rela_cli.weights import locate, run_folder

HISTORY = ("resumes", "forced")  # keys of a manifest that tell what was done in the folder, under whatever settings


class Run:
    """One run, seen from its config and from what lies on disk.

    Raises:
        RelaError: a dataset that is not there, a batch larger than the subset, or images of different sizes.
    """

    def __init__(self, config: Config) -> None:
        self.outputs, self.dataset = config.outputs, open_dataset(config)
        self.brought = Brought.of(config, self.dataset)
        self.given, self.config = config, settled(config, self.dataset, self.brought)
        if self.brought and self.config.has_views:
            self.brought.check_views(self.config.extract.views, cut_of_views(config, self.dataset.flip))
        self.lengths: Lengths = lengths(config, self.dataset.count("train"))
        if self.images.manifest is None:
            self.dataset.check_sizes()

    # ------------------------------------------------------------------------------------------ artifacts

    @cached_property
    def images(self) -> Entry:
        """Decoded pixels and labels."""
        return entry_of("images", self.dataset.identity, self.outputs / "cache")

    @property
    def shown_size(self) -> int | None:
        """Pixels a side of what a network is shown; None where all images have to be decoded first."""
        if manifest := self.images.manifest:
            return int(manifest["size"])
        with suppress(MissingError):  # an image that cannot be decoded: it will be named, or skipped, when all are
            return self.dataset.image_size or self.dataset.side
        return None

    @cached_property
    def artifacts(self) -> Artifacts:
        """What the prior makes of the images, in the cache."""
        cut = cut_of_views(self.config, self.dataset.flip)
        made_of = (self.images.hash, self.precision_key, self.config.transport.identity, cut)
        of_tokens = map_of_tokens(self.config, cut)
        source, prior = Source(self.outputs / "cache", *made_of, of_tokens), self.config.prior
        if self.brought:
            return GivenArtifacts(source, prior, self.prior_identity, specs=self.brought.folder.spec)
        return artifacts(source, prior, self.prior_identity)

    @property
    def features(self) -> Entry:
        """The prior's outputs."""
        return self.artifacts.features

    @property
    def targets(self) -> Entry:
        """What a learner is matched to. The same for every learner: each takes its first components."""
        return self.artifacts.targets

    @property
    def views(self) -> Entry:
        """With extract.views above 1: the prior's outputs of light views, and the boxes that say what these are."""
        return self.artifacts.views

    @property
    def view_targets(self) -> Entry:
        """What the map that was fitted to the clean views makes of them."""
        return self.artifacts.view_targets

    @cached_property
    def prior_identity(self) -> dict[str, Any]:
        """What a fingerprint covers of the prior."""
        return self.brought.prior_told["identity"] if self.brought else locate.identity(self.config.prior)

    @property
    def precision_key(self) -> dict[str, str]:
        """In how many bits the prior computes, where that makes other features than fp32 would."""
        told = self.brought and self.brought.prior_told["precision"]
        precision = told or self.config.runtime.extract_precision
        return {} if precision == "fp32" else {"extract_precision": precision}

    def baseline(self, what: str, protocol: str, **of: Any) -> Entry:
        """A protocol's number for something that this run did not train."""
        settings = self.probe_settings(protocol)
        spec = {"what": what, "protocol": protocol, "settings": settings, "images": self.images.hash, **of}
        return entry_of("baselines", spec, self.outputs / "cache")

    # ----------------------------------------------------------------------------------------------- names

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that changes the backbone, and nothing else; tables compare it."""
        tree, runtime = without_idle(to_tree(self.config)), self.config.runtime
        kinds = RUN_SETTINGS if self.config.is_plain else RUN_SETTINGS + MATCHING
        return {
            "version": VERSIONS["train"],
            **{group: found for group in kinds if (found := identity_of(tree[group], group)) != {}},
            **({"accumulate": tree["accumulate"]} if tree["accumulate"] > 1 else {}),
            **({"norm_groups": groups} if (groups := norm_groups(runtime.norm, runtime.devices)) > 1 else {}),
            **({} if runtime.gradient_hook == "none" else {"gradient_hook": runtime.gradient_hook}),
            **({} if self.config.is_plain else self.precision_key),
            "prior": self.prior_identity,
        }

    @cached_property
    def hash(self) -> str:
        """8 digits over the settings; of dataset and prior what they hold counts, not the place where they lie."""
        inputs: dict[str, Any] = {"images": self.images.hash, "flip": self.dataset.flip}
        if not self.config.is_plain:
            inputs |= {"targets": self.targets.hash, "read_every_steps": self.config.runtime.read_every_steps}
            inputs |= {"view_targets": self.view_targets.hash} if self.config.has_views else {}
            inputs |= {"token_targets": self.artifacts.token_targets.hash} if self.config.has_tokens else {}
        return fingerprint({**self.settings, "dataset": inputs})[:8]

    @cached_property
    def name(self) -> str:
        """What a person reads."""
        c, names = self.config, {group: slug(name) for group, name in self.called.items()}
        prior = f"{names['prior']}-random" if c.prior.options.get("weights") == RANDOM else names["prior"]
        prior += "-live" * c.is_live + f"-{c.extract.views}views" * c.has_views + "-tokens" * c.has_tokens
        return f"{names['dataset']}-{prior}-{names['learner']}-{c.method.name}-b{c.budget:g}-s{c.seed}"

    @cached_property
    def called(self) -> dict[str, str]:
        """What data set, prior and learner are called, where their parts are only loaders of them; no hash has it."""
        parts = {group: getattr(self.config, group) for group in ("dataset", "prior", "learner")}
        found = {group: called(group, part.name, part.options) for group, part in parts.items()}
        if isinstance(self.dataset, Efficient):
            found["dataset"] = self.dataset.told["called"]
        if self.brought:
            return found | {"prior": self.brought.prior_told["called"]}
        return found | (
            {} if self.config.is_plain else {"prior": "+".join(map(prior_called, self.config.prior.singles))}
        )

    @cached_property
    def folder(self) -> Path:
        """Where the run lies."""
        by_hand = self.config.paths.run
        if by_hand:
            return Path(by_hand).expanduser()
        folder = self.outputs / "runs" / f"{self.name}-{self.hash}"
        return folder if folder.exists() else self.known_folder or folder

    @property
    def known_folder(self) -> Path | None:
        """Where this run lies under another name, from before its data or its weights were called as they are now."""
        found = sorted((self.outputs / "runs").glob(f"*-{self.hash}/manifest.json"))
        return found[0].parent if found else None

    # ----------------------------------------------------------------------------------------- what is there

    @property
    def manifest(self) -> Facts:
        """The run's manifest; empty when there is none. Of another run that is continued by force, its history.

        Raises:
            RelaError: a folder named by hand holds another run, or a damaged manifest cannot be done without.
        """
        try:
            manifest = load_json(self.folder / "manifest.json")[0]
        except FileNotFoundError:
            return {}
        except (OSError, Damaged) as error:
            check_replaceable(self.folder, bool(self.config.paths.run), reason_of(error))
            return {}
        if not manifest or manifest.get("hash") == self.hash:
            return manifest
        if self.config.resume == "force":
            return {key: manifest[key] for key in HISTORY if key in manifest}
        raise RelaError(
            f"{self.folder} holds another run; it differs in\n{differences_text(self.differences())}\n"
            f"Say another paths.run=FOLDER, resume=force to go on with it under these settings, or resume=never to "
            f"set it aside and start again"
        )

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Key by key what the folder's run has, and what this one has, of what changes a backbone; empty if it is this.

        Raises:
            MissingError: the folder's config.yaml is damaged.
        """
        manifest = read_json(self.folder / "manifest.json") or {}
        if not manifest or manifest.get("hash") == self.hash:
            return {}
        theirs = (run_folder.run_config(self.folder), manifest.get("inputs", {}))
        return changed_settings(theirs, (redact(self.tree), self.inputs))

    @property
    def trained(self) -> Facts | None:
        """What training had to say, once it is done."""
        facts = section(self.manifest, "train")
        return facts if facts and (self.folder / "backbone.safetensors").exists() else None

    @property
    def result(self) -> Facts | None:
        """result.json; None where there is none, and with a warning where it is damaged."""
        path = self.folder / "result.json"
        try:
            result = load_json(path)[0]
        except FileNotFoundError:
            return None
        except (OSError, Damaged) as error:
            warn_once(f"{path} is damaged: {reason_of(error)}. Its numbers are measured again; the old file is kept")
            return None
        return result if result.get("fingerprint") == self.hash else None

    @property
    def can_probe(self) -> bool:
        """Whether there are labels to probe with."""
        return self.dataset.why_unprobed is None

    def probe_key(self, protocol: str) -> str:
        """The name of a number in result.json: the protocol, and the network unless it is the online one."""
        network = self.config.probe.network
        return protocol if network == "online" else f"{protocol}@{network}"

    def missing_probes(self) -> list[str]:
        """Protocols whose number result.json lacks, or has under other settings."""
        done = section(self.result or {}, "probe")
        wanted = self.config.probe.protocols if self.can_probe else ()
        return [p for p in wanted if section(done, self.probe_key(p)).get("settings") != self.probe_settings(p)]

    def probe_settings(self, protocol: str) -> dict[str, Any]:
        """The keys of the probe group that a protocol's number depends on."""
        tree = to_tree(self.config)["probe"]
        shared = ("label_share",) if protocol == "finetune" else ()
        named = protocol.partition("-")[0]  # segment-linear and segment-fcn have their keys in common
        wanted = [key for key in tree if key.startswith(f"{named}_") or key in shared]
        return {key: tree[key] for key in wanted if tree[key] is not None}

    def missing_baselines(self) -> bool:
        """Whether the untrained learner or the prior alone lacks a number that was asked for."""
        if not (self.can_probe and self.config.probe.baselines):
            return False
        done = section(self.result or {}, "baselines")
        names = ["untrained"] if self.config.is_plain else ["untrained", "prior_alone"]
        return any(p not in section(done, name) for name in names for p in self.config.probe.protocols)

    # ------------------------------------------------------------------------------------------ bookkeeping

    @property
    def inputs(self) -> dict[str, str]:
        """The entries of the cache that it is made of."""
        of_prior = {kind: getattr(self.artifacts, kind).hash for kind in kinds_of(self.config)}
        return {"images": self.images.hash, **of_prior}

    @property
    def member_inputs(self) -> dict[str, list[str]]:
        """The entries of an ensemble's members, from which its own are made; empty for a single prior."""
        members = () if self.config.is_plain else self.artifacts.members
        return {kind: [getattr(member, kind).hash for member in members] for kind in kinds_of(self.config) if members}

    @property
    def tree(self) -> dict[str, Any]:
        """The config as config.yaml has it."""
        return dict(yaml_ready(to_tree(self.given)))


def prior_called(prior: Part) -> str:
    """What one prior is called: a run of ours by that run's name."""
    run = prior.name == "rela_run" and run_folder.run_name(prior)
    return run_called(run) if run else called("prior", prior.name, prior.options)


def yaml_ready(value: Any) -> Any:
    """Lists for tuples, so that any YAML reader takes it."""
    if isinstance(value, dict):
        return {k: yaml_ready(v) for k, v in value.items()}
    return [yaml_ready(v) for v in value] if isinstance(value, list | tuple) else value


def check_forceable(run: Run) -> None:
    """Before any work: a run that is to continue under other settings has left a checkpoint.

    Raises:
        RelaError: it has not.
    """
    if run.config.resume != "force" or not run.differences() or [*run.folder.glob("checkpoint-*.safetensors")]:
        return
    raise RelaError(
        f"{run.folder} has no checkpoint to go on from. A run that is finished keeps one only with "
        "checkpoint.keep=true: with that, epochs=N resume=force prolongs it. resume=never sets the folder aside "
        "and starts again"
    )


def check_replaceable(folder: Path, by_hand: bool, reason: str) -> None:
    """Before a damaged manifest is written anew: only where its folder's name says which run lies in it.

    Checkpoints hold all else that an unfinished run needs. A finished one's manifest says what its backbone is.

    Raises:
        RelaError: that is not known, or training would have to be done again.
    """
    what = f"{folder / 'manifest.json'} is damaged: {reason}.\n"
    if (folder / "backbone.safetensors").exists():
        raise RelaError(
            f"{what}Training is done there, and the manifest says what came out of it. Put back a copy of it, or "
            f"say resume=never to set the folder aside and train again"
        )
    if by_hand:
        raise RelaError(
            f"{what}It alone says which run lies there. If it is this one, remove the file: the same command then "
            f"goes on from the last checkpoint. If not, say another paths.run=FOLDER"
        )
    warn_once(f"{what}It is written anew, since the folder's name says that this run lies there")
