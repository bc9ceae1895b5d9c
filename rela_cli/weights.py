"""Weights of priors: where they lie, and what to say when one is not there. Needs no torch.

`prior.weights` is `pretrained` (the card's source: looked for in the caches first, then fetched), `random` (an
untrained network, and every result says so), or a path. Nothing pretrained is ever replaced by a random network.
"""

from __future__ import annotations

import functools
import os
import urllib.parse
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rela_cli.artifacts import Facts, file_sha256, fingerprint, read_whole, reason_of, section
from rela_cli.config import HERE, PRETRAINED, RANDOM, Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.kinds import files_of, kind_of
from rela_cli.model_folder import file_in
from rela_cli.network import unreachable
from rela_cli.onnx_file import check_installed
from rela_cli.sealed import Damaged, parsed_yaml

EMBEDDED = HERE / "embedded"  # the run whose backbone ships with the package; `prior.run=embedded`
ONNX = "rela_cli.priors.onnx.Onnx"
NEUTRAL = {"pool": "none", "channels": "rgb"}  # change nothing; fingerprints from before these keys were there stay


def locate(prior: Part) -> Path | None:
    """The file with a prior's weights, fetched if need be; None for a prior without a file.

    Raises:
        MissingError: it is not there and cannot be fetched, or what is there is something else; with the ways out.
        ConfigError: a file that would run code, without the user's word.
    """
    if prior.options.get("run"):
        folder, network = run_folder(prior), prior.options["network"]
        check_backbone(folder, network)
        return folder / backbone_name(network)
    weights = prior.options.get("weights")
    if prior.target == ONNX:
        check_installed()
    if not weights or weights == RANDOM:
        return None
    path = fetch(prior) if weights == PRETRAINED else file_in(Path(weights).expanduser())
    if path.is_dir() or not path.exists():
        raise MissingError(f"prior.weights={weights} does not exist (looked at {path.absolute()})")
    check_trust(path, prior)
    return path


def located(prior: Part) -> Part:
    """The same prior with its weights named by a path."""
    if prior.options.get("run"):
        return Part(prior.name, prior.target, {**prior.options, "run": str(run_folder(prior))}, prior.card)
    path = locate(prior)
    return (
        prior if path is None else Part(prior.name, prior.target, {**prior.options, "weights": str(path)}, prior.card)
    )


def identity(prior: Part) -> dict[str, Any]:
    """What a fingerprint covers of a prior: what its files hold, not where they lie."""
    found = prior.identity | {"name": shown_name(prior)}
    found.pop("trust", None)
    for key, value in NEUTRAL.items():
        if found.get(key) == value:
            found.pop(key)
    path = locate(prior)
    if path is not None:
        files = files_of(path)
        contents = digest(path) if files == [path] else [digest(file) for file in (path, *files)]
        found["run" if prior.options.get("run") else "weights"] = contents
    if prior.options.get("run"):
        found["built"] = fingerprint(run_facts(run_folder(prior)))
    return found


def shown_name(prior: Part) -> str:
    """`clip_vitb16 (random weights)` for a network that was asked for untrained."""
    return f"{prior.name} (random weights)" if prior.options.get("weights") == RANDOM else prior.name


def file_name(prior: Part) -> dict[str, str]:
    """`{"file": NAME}` of a prior from a file of the user's own: tables tell two of one model apart by it."""
    weights = prior.options.get("weights")
    return {"file": Path(weights).name} if weights and weights not in (PRETRAINED, RANDOM) else {}


def digest(path: Path) -> str:
    """sha256 of a file, read once a process as long as it does not change."""
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


# ---------------------------------------------------------------------------------------------- runs of our own


def run_folder(prior: Part) -> Path:
    """The finished run behind `prior.run`.

    Raises:
        MissingError: no such folder, or no finished run in it.
    """
    named = prior.options["run"]
    folder = EMBEDDED if named == "embedded" else Path(named).expanduser()
    wanted = ("config.yaml", "manifest.json", backbone_name(prior.options["network"]))
    if lacking := [name for name in wanted if not (folder / name).is_file()]:
        raise MissingError(
            f"prior.run={named} is not a finished run: {folder.absolute()} has no {lacking[0]}. "
            f"`rela train` leaves such folders in outputs/runs"
        )
    return folder


def run_facts(folder: Path) -> dict[str, Any]:
    """How a run's backbone is built and what it wants to be fed: learner, image_size, mean, std.

    Raises:
        MissingError: a run by an older version, which did not write them down.
    """
    learner = run_config(folder).get("learner")
    if not isinstance(learner, dict):
        raise MissingError(f"{folder}/config.yaml is damaged: it names no learner")
    learner = {key: value for key, value in learner.items() if key != "card"}
    train = trained(folder)
    if lacking := [key for key in ("image_size", "mean", "std") if key not in train]:
        raise MissingError(f"{folder}/manifest.json does not say train.{lacking[0]}; train it again with this version")
    return {"learner": learner, **{key: train[key] for key in ("image_size", "mean", "std")}}


def run_config(folder: Path) -> Facts:
    """The config of a run, as its config.yaml has it.

    Raises:
        MissingError: it cannot be read, or is not what the run's manifest says was written.
    """
    path, wanted = folder / "config.yaml", read_whole(folder / "manifest.json").get("config_hash")
    try:
        tree = parsed_yaml(path.read_bytes())
        if wanted and config_hash(tree) != wanted:
            raise Damaged("its hash is not the one in manifest.json; put back a copy, or repeat the run's command")
        return tree
    except (OSError, Damaged) as error:
        raise MissingError(f"{path} is damaged: {reason_of(error)}") from error


def config_hash(tree: Facts) -> str:
    """A fingerprint of a run's config.yaml but for its paths, which may be set right when folders are moved."""
    return fingerprint({group: keys for group, keys in tree.items() if group != "paths"})


def trained(folder: Path) -> Facts:
    """What training wrote into a run's manifest; empty when there is none.

    Raises:
        MissingError: it does not hold what was written.
    """
    return section(read_whole(folder / "manifest.json"), "train")


def backbone_name(network: str) -> str:
    """The file of a run that holds its online or its target network."""
    return "backbone.safetensors" if network == "online" else f"backbone_{network}.safetensors"


def recorded(folder: Path) -> Facts:
    """Size and sha256 of a run's backbones, for its manifest."""
    files = sorted(folder.glob("backbone*.safetensors"))
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files}


def run_name(prior: Part) -> str:
    """What the folder behind `prior.run` is called, links followed: a table shows it."""
    return run_folder(prior).resolve().name


def check_backbone(folder: Path, network: str) -> None:
    """Before a run's backbone is read: it holds what training wrote. One that is not there is for others to name.

    Raises:
        MissingError: an empty, truncated or changed file.
    """
    path = folder / backbone_name(network)
    wanted = section(section(trained(folder), "files"), path.name).get("sha256")
    if path.is_file() and kind_of(path) and wanted and digest(path) != wanted:
        raise MissingError(
            f"{path} is damaged: its sha256 is {digest(path)[:16]}..., and {wanted[:16]}... was written. "
            f"Put back a copy, or remove the file and train again with the same command"
        )


# ------------------------------------------------------------------------------------------------------ sources


@dataclass(frozen=True)
class Source:
    """A file elsewhere: hf://OWNER/REPOSITORY/FILE on the model hub, or a URL in torch's own hub cache."""

    text: str

    @property
    def is_hub(self) -> bool:
        return self.text.startswith("hf://")

    @property
    def repository(self) -> str:
        return "/".join(self.text.removeprefix("hf://").split("/")[:2])

    @property
    def file(self) -> str:
        return self.text.removeprefix("hf://").split("/", 2)[2] if self.is_hub else self.text.rsplit("/", 1)[1]

    @property
    def address(self) -> str:
        """Whom to ask."""
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co") if self.is_hub else self.text

    @property
    def folder(self) -> Path:
        """Where the file lies once it is there."""
        if self.is_hub:
            from huggingface_hub import constants

            return Path(constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"
        cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
        return Path(cache).expanduser() / "hub" / "checkpoints"

    def cached(self) -> Path | None:
        """The file, if it is in the cache."""
        if not self.is_hub:
            return self.folder / self.file if (self.folder / self.file).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self.file)
        return Path(found) if isinstance(found, str) else None

    def download(self) -> Path:
        """Fetch it into the cache; the libraries show progress, and check the size or the hash in the name."""
        if self.is_hub:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.repository, self.file))
        from torch.hub import download_url_to_file

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.file
        prefix = path.stem.rpartition("-")[2]
        download_url_to_file(self.text, str(path), prefix if len(prefix) == 8 else None)
        return path


def fetch(prior: Part) -> Path:
    """The card's file, from the cache or from where it is published.

    Raises:
        MissingError: within a few seconds when there is no network; it names the file, the cache and the ways out.
    """
    sources = [Source(text) for text in sources_of(prior)]
    path = next((path for source in sources if (path := source.cached())), None)
    if path is None:
        if why := _offline(sources[0]):
            raise MissingError(_missing(prior, sources[0], why))
        path = _download(prior, sources)
    _check_sha256(prior, path)
    return path


def sources_of(prior: Part) -> list[str]:
    """From the card, else from the library that knows the model."""
    if prior.card.source:
        return [prior.card.source]
    module, _, name = prior.target.rpartition(".")
    ask = getattr(getattr(import_module(module), name), "sources", None)
    found: list[str] = ask(**prior.options) if ask else []
    if not found:
        raise ConfigError(
            f"nobody publishes weights for prior={prior.name} prior.model={prior.options.get('model')}; "
            f"say prior.weights=PATH, or prior.weights=random for an untrained network that is called so"
        )
    return found


def _offline(source: Source) -> str | None:
    """Why a source cannot be asked now, None when it can."""
    if source.is_hub and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    why = unreachable(source.address)
    return f"{_host(source.address)} cannot be reached: {why}" if why else None


def _download(prior: Part, sources: list[Source]) -> Path:
    """The first source that can be had."""
    problems = []
    for source in sources:
        print(f"fetching {source.file}{_size(prior)} from {_host(source.address)} into {source.folder}", flush=True)
        try:
            return source.download()
        except Exception as error:  # every library has its own
            problems.append((str(error) or type(error).__name__).splitlines()[0])
    raise MissingError(_missing(prior, sources[0], "fetching it failed: " + "; ".join(problems)))


def _check_sha256(prior: Part, path: Path) -> None:
    wanted = prior.card.sha256
    if wanted and not digest(path).startswith(wanted):
        raise MissingError(
            f"{path} is not the file that prior={prior.name} names: its sha256 is {digest(path)[:16]}..., "
            f"not {wanted[:16]}... Remove it, and it is fetched again; or say prior.weights=PATH"
        )


def _missing(prior: Part, source: Source, why: str) -> str:
    """The message: what, where it would lie, why it is not there, and the ways out."""
    ways = [
        f"rela fetch prior={prior.name}   on a machine with network, then copy that folder here",
        "prior.weights=/path/to/file   your own copy of it",
        *(["HF_ENDPOINT=https://...   a mirror of the hub"] if source.is_hub else []),
        "prior=patches   needs no weights",
    ]
    home = source.repository if source.is_hub else source.text
    lines = [
        f"prior={prior.name} needs {source.file}{_size(prior)} of {home}",
        f"it is not in the cache, {source.folder}",
        why,
        "ways out:",
        *(f"  {way}" for way in ways),
    ]
    return "\n".join(lines)


def _size(prior: Part) -> str:
    return f" (about {prior.card.megabytes:g} MB)" if prior.card.megabytes else ""


def _host(address: str) -> str:
    return urllib.parse.urlsplit(address).netloc or address


def check_trust(path: Path, prior: Part) -> None:
    """Files that carry code are opened on the user's word only; an index is as good as its shards."""
    files_of(path)
    kind = kind_of(path)
    if (kind == "onnx") != (prior.target == ONNX) and prior.target.startswith("rela_cli."):
        is_what, other = ("an ONNX model", "onnx") if kind == "onnx" else ("no ONNX model", "checkpoint")
        raise ConfigError(f"{path} is {is_what}: say prior={other} prior.weights={path}")
    if kind in ("script", "export") and not prior.options.get("trust"):
        what = "a TorchScript archive" if kind == "script" else "an exported program"
        raise ConfigError(
            f"{path} is {what}: opening it can run code that is in it. If you trust where it comes from, "
            f"say prior.trust=true; a .safetensors file needs no trust"
        )
