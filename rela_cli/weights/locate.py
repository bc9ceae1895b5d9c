"""Weights of priors: where they lie, and what to say when one is not there. Needs no torch.

`prior.weights` is `pretrained` (the card's source: looked for in the caches first, then fetched), `random` (an
untrained network, and every result says so), or a path. Nothing pretrained is ever replaced by a random network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rela_cli.config.schema import PRETRAINED, RANDOM, Part
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import fingerprint
from rela_cli.store.integrity import digest
from rela_cli.weights.kinds import kind_of, weight_files
from rela_cli.weights.onnx_file import check_installed
from rela_cli.weights.run_folder import backbone_name, check_backbone, run_facts, run_folder
from rela_cli.weights.sources import fetch

ONNX = "rela_cli.priors.onnx.Onnx"

WEIGHT_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")

NEUTRAL = {"pool": "none", "channels": "rgb"}  # change nothing; fingerprints from before these keys were there stay


def locate(prior: Part) -> Path | None:
    """The file with a prior's weights, fetched if need be; None for a prior without a file, and for an ensemble.

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


def file_in(path: Path) -> Path:
    """The path itself; of a folder that a library saved a model into, the file with its weights, or the index of these.

    Raises:
        MissingError: a folder without such a file.
    """
    if not path.is_dir():
        return path
    there = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if there:
        return there[0]
    if split := sorted(path.glob("*.index.json")):  # model.safetensors.index.json before pytorch_model.bin.index.json
        return split[0]
    raise MissingError(f"{path} is a folder without {', '.join(WEIGHT_FILES)}; say prior.weights=FILE")


def located(prior: Part) -> Part:
    """The prior with its weights named by a path on this disk; of an ensemble each member."""
    return prior.each(located_alone)


def located_alone(prior: Part) -> Part:
    """A prior that is one network, with its weights named by a path on this disk."""
    if prior.options.get("run"):
        return replace(prior, options={**prior.options, "run": str(run_folder(prior))})
    path = locate(prior)
    return prior if path is None else replace(prior, options={**prior.options, "weights": str(path)})


def identity(prior: Part) -> dict[str, Any]:
    """What a fingerprint covers of a prior: what its files hold, not where they lie; of an ensemble of each member."""
    if prior.members:
        return prior.identity | {"members": [identity(member) for member in prior.members]}
    found = prior.identity | {"name": shown_name(prior)}
    found.pop("trust", None)
    for key, value in NEUTRAL.items():
        if found.get(key) == value:
            found.pop(key)
    if prior.options.get("run") and found.get("image_size") is None:
        found.pop("image_size", None)  # the run's own
    path = locate(prior)
    if path is not None:
        files = weight_files(path)
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


def check_trust(path: Path, prior: Part) -> None:
    """Files that carry code are opened on the user's word only; an index is as good as its shards."""
    weight_files(path)
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
