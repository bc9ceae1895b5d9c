"""`rela export RUN --to FOLDER --format FORMAT`: a backbone for other libraries, whole or not at all."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rela_cli.commands.export import formats
from rela_cli.commands.export.backbone import Backbone
from rela_cli.config.arguments import Choice, Parser
from rela_cli.config.schema import NETWORKS
from rela_cli.errors import ConfigError
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, file_sha256, fingerprint, read_json, remove_tree, sync, write_json
from rela_cli.store.locks import Lock
from rela_cli.store.outputs import find_run, run_names, size_of, size_text
from rela_cli.terminal import line
from rela_cli.weights.run_folder import with_backbone

RECORD = "rela.json"  # of an exported folder: what it was made of, and what its files hold


def main(words: list[str]) -> int:
    """Write the folder, or say that it is there.

    Raises:
        ConfigError: a format that cannot hold the network, or whose library is missing; a folder of something else.
        MissingError: no such run, or none with a backbone.
    """
    given = parser().read(words)
    if not given.to or not given.format:
        what = "where to: --to FOLDER" if not given.to else f"which format: --format {'|'.join(formats.FORMATS)}"
        raise ConfigError(f"say {what}; such as rela export latest --to model --format onnx")
    backbone = backbone_of(given)
    formats.check(backbone, given.format)
    export(backbone, given.format, given.to.expanduser(), given.overwrite)
    return 0


def parser() -> Parser:
    """The command line of `rela export`."""
    made = Parser(
        "export",
        "Writes a finished run's backbone for other libraries: weights or a program, preprocessing, a model card, and "
        "load.py, which needs no rela. Then it loads what it has written and compares the features with the run's own.",
        ["rela export latest --to model --format onnx", "rela export latest --to model --format huggingface"],
    )
    add_run(made)
    made.add_argument("--to", type=Path, metavar="FOLDER", help="the folder to make")
    form = Choice("--format", formats.FORMATS)
    made.add_argument("--format", type=form, metavar="FORMAT", help=", ".join(formats.FORMATS))
    add_licence(made)
    made.add_argument("--overwrite", action="store_true", help="replace a FOLDER that holds another export")
    return made


def add_run(made: Parser) -> None:
    """The run, its network, and what its config may call."""
    a_run = "a folder, a name or a part of one (default: latest)"
    made.add("run", nargs="?", default="latest", metavar="RUN", help=a_run, offers=run_names)
    networks = Choice("--network", (*NETWORKS,))
    made.add_argument("--network", type=networks, default="online", help=f"{' or '.join(NETWORKS)} (default: online)")
    packages = "a package besides rela whose classes the run's config may name; may be given again"
    made.add_argument("--allow", action="append", default=[], metavar="PACKAGE", help=packages)
    made.add_outputs()


def add_licence(made: Parser) -> None:
    """The licence that the card states."""
    name = "the licence that the card states, such as apache-2.0 (default: none)"
    made.add_argument("--licence", metavar="NAME", help=name)


def backbone_of(given: argparse.Namespace) -> Backbone:
    """The backbone that a command line names."""
    run = find_run(given.run, given.outputs)
    with_backbone(run, given.network)
    return Backbone(run, given.network, tuple(given.allow), given.licence)


def export(backbone: Backbone, form: str, to: Path, overwrite: bool = False) -> None:
    """Fill the folder beside its place, try it out, and put it in place in one step; nothing where it is there.

    Raises:
        ConfigError: there is something else. RelaError: what was written gives other features.
    """
    identity = identity_of(backbone, form)
    with disk_errors(to, way_out="--to=FOLDER"):
        if is_done(to, identity, overwrite):
            return
        part = to.with_name(f".{to.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        with Lock(part / ".lock", f"the folder {to}").held():
            if not is_done(to, identity, overwrite):
                apart = fill_export(backbone, form, part / "new", identity)
                remove_tree(to)
                os.replace(part / "new", to)
                sync(to.parent)
                show(backbone, form, to, apart)
            remove_tree(part)


def identity_of(backbone: Backbone, form: str) -> Facts:
    """What the folder's content depends on."""
    return {
        "weights": backbone.sha256,
        "format": form,
        "network": backbone.network,
        "preprocessing": backbone.preprocessing,
        "result": fingerprint(backbone.run.result),
        "licence": backbone.licence,
    }


def is_done(to: Path, identity: Facts, overwrite: bool) -> bool:
    """Whether just this export is there, whole; then that is said.

    Raises:
        ConfigError: there is something else that is not to be replaced.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return False
    record = read_json(to / RECORD) or {}
    if not record:
        raise ConfigError(f"{to} is there, and is no export of rela: say another --to FOLDER")
    if record.get("identity") == identity and holds_its_files(to, record):
        line(f"  already there  {to}")
        return True
    if overwrite:
        return False
    other = [key for key, value in identity.items() if record.get("identity", {}).get(key) != value]
    what = f"was made with other {' and '.join(other)}" if other else "has been changed"
    raise ConfigError(f"{to} {what}: say another --to FOLDER, or --overwrite to replace it")


def holds_its_files(to: Path, record: Facts) -> bool:
    """Whether the files hold what was written."""
    return all((to / name).is_file() and file_sha256(to / name) == sha for name, sha in record["files"].items())


def fill_export(backbone: Backbone, form: str, folder: Path, identity: Facts) -> float:
    """All files of an export; how far its features are from ours."""
    from rela_cli.commands.export.card import model_card

    remove_tree(folder)  # of a killed process; we hold the lock
    folder.mkdir()
    formats.write(backbone, form, folder)
    apart = formats.largest_difference(backbone, folder)
    remove_tree(folder / "__pycache__")
    (folder / "README.md").write_text(model_card(backbone, form, apart), encoding="utf-8")
    files = sorted(path for path in folder.iterdir())
    for path in files:
        sync(path)
    write_json(folder / RECORD, {"identity": identity, "files": {path.name: file_sha256(path) for path in files}})
    return apart


def show(backbone: Backbone, form: str, to: Path, apart: float) -> None:
    """What was written."""
    fed = backbone.preprocessing
    line(f"  network   {backbone.run.folder.name}, {backbone.width} features, images of {fed['size']} px")
    line(f"  checked   {form}, loaded back: features differ by {apart:.0e} of the largest one")
    for path in sorted(to.iterdir()):
        line(f"  file      {size_text(size_of(path))}  {path.name}")
    line(f"  made      {to}; its README.md says how to load it")
