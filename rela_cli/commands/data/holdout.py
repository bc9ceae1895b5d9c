"""`rela data holdout`: a folder of links in which a part of train stands as test, to choose settings by."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rela_cli.config.compose import Composer
from rela_cli.config.overrides import CommandLine, RunParser, parse
from rela_cli.config.parts import instantiate
from rela_cli.data.base import Array, Dataset, stratified
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, RelaError
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, read_json, write_json

NOTE = "holdout.json"  # what the links were made of; written before the folder gets its name
OWN_KEYS = ("to", "share")  # keys that are not the config's


def main(words: list[str]) -> int:
    """Make the folder, unless it is there already; say how it is used."""
    line = parse(parser().words(words))
    own = {key: value for key, _, value in (word.partition("=") for word in line.overrides) if key in OWN_KEYS}
    share = read_share(own)
    rest = tuple(word for word in line.overrides if word.partition("=")[0] not in OWN_KEYS)
    config = Composer(CommandLine(line.flags, rest)).check()
    dataset: Dataset = instantiate(config.dataset, cache=Path(config.paths.outputs).expanduser() / "cache")
    to = Path(own["to"]).expanduser()
    with disk_errors(to):
        counts = make(dataset, share, to)
    print(f"  train        {counts['train']} links to train images")
    print(f"  test         {counts['test']} links to other train images; no test image is among them")
    print(f"  to use it    {shlex.join(['rela', 'train', 'dataset=image_folder', f'dataset.root={to}'])}")
    return 0


def parser() -> RunParser:
    """The command line of `rela data holdout`."""
    made = RunParser(
        "data holdout",
        "A folder of links in which a part of the train images stands as test: choose settings there, and look at the "
        "real test images once, at the end. Classes keep their proportions.",
        [
            "rela data holdout dataset=image_folder dataset.root=photos --to chosen-by",
            "rela data holdout dataset=image_folder dataset.root=photos --share 0.2 --to chosen-by",
        ],
    )
    made.add("--to", metavar="FOLDER", help="where the links are put")
    made.add("--share", metavar="SHARE", help="of the train images, to hold out (default: 0.1)")
    return made


def read_share(own: dict[str, str]) -> float:
    """The share, once all is there that has to be.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems = [] if own.get("to") else ["say where to: --to FOLDER"]
    try:
        share = float(own.get("share", "0.1"))
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        problems.append(f"--share {own['share']} must be a number above 0 and below 1")
    if problems:
        raise ConfigError("\n".join(problems))
    return share


def make(dataset: Dataset, share: float, to: Path) -> dict[str, int]:
    """The links under another name first, so that a folder that is there is whole; images of each split.

    Raises:
        ConfigError: the images are no files, or have no classes. RelaError: something else lies there.
    """
    if not isinstance(dataset, ImageFolder) or dataset.classes is None:
        raise ConfigError(
            "rela data holdout makes links to files in class folders: say dataset=image_folder dataset.root=FOLDER, "
            "a folder with train/<class>/*"
        )
    chosen = drawn_rows(dataset, share)
    counts = {split: len(rows) for split, rows in chosen.items()}
    of = {"listing": dataset.listed.fingerprint, "limit": dataset.limits["train"], "seed": dataset.seed}
    note: Facts = {"of": of, "share": share, "counts": counts}
    if to.exists():
        return there(to, note)
    part = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    for split, rows in chosen.items():
        link(part / split, files(dataset, rows))
    write_json(part / NOTE, note)
    part.rename(to)
    return counts


def there(to: Path, note: Facts) -> dict[str, int]:
    """What an earlier call made of the same images.

    Raises:
        RelaError: the folder holds something else.
    """
    if read_json(to / NOTE) != note:
        raise RelaError(f"{to} is there and holds something else; say another --to FOLDER, or remove it")
    print(f"  already there: {to}")
    return dict(note["counts"])


def drawn_rows(dataset: ImageFolder, share: float) -> dict[str, Array]:
    """Rows of train for each split: `share` of every class for test, drawn by `dataset.seed`, and the others.

    Raises:
        ConfigError: one of them would be empty.
    """
    rows, labels = dataset.choose("train")
    held_out = stratified(labels, len(rows), round(share * len(rows)), dataset.seed)
    if not 0 < len(held_out) < len(rows):
        raise ConfigError(f"--share {share:g} of {len(rows)} train images leaves no image in train or in test")
    return {"train": np.delete(rows, held_out), "test": rows[held_out]}


def files(dataset: ImageFolder, rows: Array) -> Iterator[tuple[str, Path]]:
    """Each image's place below a split's folder, <class>/<name>, and the file."""
    labels, classes = dataset.labels("train"), dataset.classes
    assert labels is not None and classes is not None
    for row in rows.tolist():
        name = "-".join(Path(dataset.files["train"][row]).parts[1:])  # folders within a class become part of the name
        yield f"{classes[labels[row]]}/{name}", dataset.encoded("train", row).resolve()


def link(folder: Path, images: Iterator[tuple[str, Path]]) -> None:
    """Symbolic links, which take no room."""
    for name, path in images:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
