"""`rela data check FOLDER`: the files of an efficient dataset, and the images behind it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rela_cli.config.overrides import CommandLine
from rela_cli.config.schema import Config
from rela_cli.data.efficient.contents import samples
from rela_cli.data.efficient.dataset import Efficient
from rela_cli.data.efficient.folder import BEGUN, CARD, FACTS, EfficientFolder
from rela_cli.errors import ConfigError, MissingError, RelaError
from rela_cli.machine.progress import with_progress
from rela_cli.terminal import as_size, line, plural, printable

DIFFERENT_SHOWN = 20  # images that differ, on the screen


def main(config: Config, folder: Path | None, cache: Path) -> int:
    """Check the folder that the line names, or that of dataset=efficient; 3 when something is wrong.

    Raises:
        ConfigError: nobody says which.
    """
    options = config.dataset.options
    if folder:
        return check(folder, None, cache)
    if not options.get("root"):
        raise ConfigError("dataset=efficient needs dataset.root=FOLDER, which `rela convert` has written")
    return check(Path(str(options["root"])).expanduser(), options.get("images"), cache)


def without_folder(given: CommandLine, folder: Path | None) -> CommandLine:
    """The line without the word that names an efficient dataset."""
    words = tuple(word for word in given.overrides if not folder or "=" in word or Path(word).expanduser() != folder)
    return CommandLine(given.flags, words)


def folder_in(words: Sequence[str]) -> Path | None:
    """The efficient dataset that a word of the command line names as a folder; None where there is none."""
    plain = [Path(word).expanduser() for word in words if "=" not in word and not word.startswith("-")]
    return next((path for path in plain if (path / FACTS).exists() or (path / BEGUN).exists()), None)


def check(root: Path, images: str | None, cache: Path) -> int:
    """Read every file and every image, and say what is wrong; 3 when something is.

    Raises:
        MissingError: it is not finished, or efficient.json itself is damaged.
    """
    folder = EfficientFolder(root, whole=False)
    problems = list(folder.problems(contents=True, afresh=True))
    line(f"efficient dataset  {root}")
    for split, part in folder.splits.items():
        line(f"  {split:<12} {part['samples']} x {part['width']} targets, {plural(len(part['shards']), 'file')}")
    files = folder.facts["files"]
    line(f"  files        {len(files) + 1} read, {as_size(sum(file['bytes'] for file in files.values()))}")
    if problems and any(not problem.startswith(str(root / CARD)) for problem in problems):
        line("  images       not looked at, since files are damaged")
    else:
        problems += image_problems(root, images, cache)
    for problem in problems:
        print(printable(f"  broken       {problem}"), file=sys.stderr)
    line(f"  broken       {len(problems) or 'none'}")
    return MissingError.exit_code if problems else 0


def image_problems(root: Path, images: str | None, cache: Path) -> list[str]:
    """What is wrong with the images of a folder whose files are whole; what was looked at is said."""
    dataset = Efficient(str(root), images, cache)
    if dataset.has_copies:
        line("  images       in images/, whose files are among those")
        return []
    if dataset.folder.facts["images"] == "none" and images is None:
        line("  images       none: with dataset=efficient dataset.root=... dataset.images=FOLDER they are compared")
        return []
    try:
        found = [problem for split in dataset.splits for problem in other_images(dataset, split)]
    except RelaError as error:
        return [str(error)]
    total = sum(dataset.full_count(split) for split in dataset.splits)
    line(f"  images       {total} compared with their sha256: {len(found) or 'none'} differ")
    more = len(found) - DIFFERENT_SHOWN
    return [*found[:DIFFERENT_SHOWN], *[f"and {more} more images"] * (more > 0)]


def other_images(dataset: Efficient, split: str) -> Iterator[str]:
    """A line for each image that is not the one that was converted."""
    rows, wanted = dataset.rows(split), dataset.folder.column(split, "sha256")
    found = with_progress(samples(dataset.inner, split, rows), f"check {split}", len(rows))
    for i, (name, digest) in enumerate(found):
        if digest != wanted[i].tobytes():
            yield f"{name or f'image {rows[i]} of {split}'} is not the image that was converted: its sha256 differs"
