"""`rela data holdout`: a folder of links in which a part of train stands as test, to choose settings by."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rela_cli.config.arguments import PositiveNumber
from rela_cli.config.compose import Composer
from rela_cli.config.overrides import RunParser
from rela_cli.data.base import Array, Dataset, open_dataset, stratified
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, RelaError
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, read_json, write_json

NOTE = "holdout.json"  # what the links were made of; written before the folder gets its name


def main(words: list[str]) -> int:
    """Make the folder, unless it is there already; say how it is used."""
    given, line = parser().read_line(words)
    dataset, to = open_dataset(Composer(line).check()), given.to
    with disk_errors(to):
        counts = make_links(dataset, given.share, to)
    print(f"  train        {counts['train']} links to train images")
    print(f"  test         {counts['test']} links to other train images; no test image is among them")
    print(f"  to use it    {shlex.join(['rela', 'train', 'dataset=image_folder', f'dataset.root={to}'])}")
    return 0


def parser() -> RunParser:
    """The command line of `rela data holdout`."""
    made = RunParser(
        "data holdout",
        "Makes a folder of links in which a part of the train images serves as test images. Choose settings there, and "
        "use the real test images once, at the end. Classes keep their proportions.",
        [
            "rela data holdout dataset=image_folder dataset.root=photos --to chosen-by",
            "rela data holdout dataset=image_folder dataset.root=photos --share 0.2 --to chosen-by",
        ],
    )
    made.add_to("FOLDER", "the folder to make", "--to FOLDER", type=lambda text: Path(text).expanduser())
    share, help = PositiveNumber("--share", 1), "share of the train images to hold out (default: 0.1)"
    made.add("--share", metavar="SHARE", type=share, default=0.1, help=help)
    return made


def make_links(dataset: Dataset, share: float, to: Path) -> dict[str, int]:
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
