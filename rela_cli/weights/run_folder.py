"""A run folder as a source of weights: what it holds, and whether its backbone is intact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rela_cli.config.identity import identity_of
from rela_cli.config.schema import Part
from rela_cli.errors import MissingError
from rela_cli.store.files import Facts, fingerprint, read_whole, reason_of, section
from rela_cli.store.integrity import digest
from rela_cli.store.notices import warn_once
from rela_cli.store.outputs import RunFolder
from rela_cli.store.sealed import Damaged, parsed_yaml
from rela_cli.weights.kinds import kind_of

EMBEDDED = Path(__file__).parent / "embedded"  # the run whose backbone ships with the package; `prior.run=embedded`


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
    train = trained(folder)
    if lacking := [key for key in ("image_size", "mean", "std") if key not in train]:
        raise MissingError(f"{folder}/manifest.json does not say train.{lacking[0]}; train it again with this version")
    return {"learner": identity_of(learner), **{key: train[key] for key in ("image_size", "mean", "std")}}


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


def with_backbone(run: RunFolder, network: str = "online") -> Path:
    """The folder of a run that has a trained backbone.

    Raises:
        MissingError: it has none, or not that network; with what the run is at.
    """
    if not (run.folder / backbone_name("online")).is_file():
        how = "; its command goes on with it" if run.is_open else ""
        raise MissingError(f"{run.folder} has no trained backbone: it is {run.status}{how}")
    if not (run.folder / backbone_name(network)).is_file():
        raise MissingError(f"{run.folder} has no {network} network; say --network online")
    check_backbone(run.folder, network)
    return run.folder


def decoded_size(folder: Path) -> int:
    """Pixels a side that a run's images were decoded to, of which its network was shown the middle.

    Runs of older versions do not say it; they are taken to have shown all of it, which is said where that is a guess.
    """
    facts, dataset = trained(folder), section(run_config(folder), "dataset")
    if "decoded_size" not in facts and (dataset.get("decode_size") or dataset.get("on_disk") is not False):
        how = f"images are brought to {facts.get('image_size')} px, as it was for all that are decoded into memory"
        warn_once(f"{folder}: an older version wrote this run, and not how large it decoded its images; {how}")
    return int(facts.get("decoded_size") or facts["image_size"])


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
