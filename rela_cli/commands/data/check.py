"""`rela data check`: read every image of a dataset once, and say what is there, what is broken, what has changed."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rela_cli.commands.data import check_efficient
from rela_cli.config.compose import Composer
from rela_cli.config.overrides import RunParser, parse
from rela_cli.config.schema import Config
from rela_cli.data.base import Dataset, open_dataset
from rela_cli.data.decoding.images import Blob, decode, has_sound_exif
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import MissingError
from rela_cli.machine.processors import each_in_threads
from rela_cli.machine.progress import with_progress
from rela_cli.store.files import Facts, fingerprint, provenance, read_json, write_json
from rela_cli.terminal import few, line, plural, printable

IMAGES_AHEAD = 2048  # images under way at a time
PIXELS = 50_000  # images of a dataset that holds pixels, in memory at a time
BROKEN_SHOWN = 20  # broken files on the screen; the report has them all


@dataclass(frozen=True)
class ImageFacts:
    """One encoded image, read: what it is, or why it cannot be."""

    name: str
    digest: bytes
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""
    no_exif: bool = False  # its EXIF cannot be read, so nobody knows which way up it is


def main(words: list[str]) -> int:
    """Check a dataset, print the report and keep it; 3 when something is broken or empty."""
    given = parse(parser().words(words))
    folder = check_efficient.folder_in(given.overrides)
    config = Composer(check_efficient.without_folder(given, folder)).check()
    cache = config.outputs / "cache"
    if folder or config.dataset.name == "efficient":
        return check_efficient.main(config, folder, cache)
    dataset = open_dataset(config)
    path = cache / "index" / report_name(config) / "check.json"
    report = examine_dataset(dataset)
    show(config, report, read_json(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**report, **provenance()})
    line(f"  report       {path}")
    return MissingError.exit_code if report["broken"] or report["empty_classes"] else 0


def parser() -> RunParser:
    """The command line of `rela data check`."""
    return RunParser(
        "data check",
        "Reads every image of a dataset once, and says what is there, what is broken and what has changed. With the "
        "FOLDER of an efficient dataset (by rela convert) it reads every file.",
        [
            "rela data check dataset=image_folder dataset.root=photos",
            "rela data check dataset=cifar10 dataset.root=data",
            "rela data check FOLDER",
        ],
    )


def report_name(config: Config) -> str:
    """The name that the report of a dataset is kept under."""
    root = str(config.dataset.options.get("root") or "")
    return fingerprint({"name": config.dataset.name, "root": str(Path(root).expanduser().resolve())})


def examine_dataset(dataset: Dataset) -> Facts:
    """Everything about a dataset that takes reading all of it."""
    dataset.on_error = "raise"  # here every image counts
    empty, odd, left = [], [], ""
    if isinstance(dataset, ImageFolder):
        index = dataset.listed = dataset.index(afresh=True)  # later starts go by this
        dataset.classes = dataset.layout.classes_in(index.lists[0])
        empty, odd, left = dataset.empty_classes(index), dataset.told_odd(index), dataset.left_out(index)
    splits = {split: examine_split(dataset, split) for split in dataset.splits if dataset.full_count(split)}
    broken = odd + [problem for split in splits.values() for problem in split.pop("broken")]
    contents = fingerprint({"splits": [split.pop("contents") for split in splits.values()]})
    return {
        "splits": splits,
        "classes": dataset.classes,
        "empty_classes": empty,
        "found": sum(split["images"] for split in splits.values()) + len(odd),
        "left_out": left,
        "unprobed": unprobed(dataset, splits),
        "broken": broken,
        "fingerprint": fingerprint(dataset.identity_of_images()),
        "contents": contents,
    }


def unprobed(dataset: Dataset, splits: Facts) -> str | None:
    """Why a run on it will give no numbers; None when it will."""
    if dataset.why_unprobed or ("test" in splits and "train" in splits):
        return dataset.why_unprobed
    return f"no {' and no '.join(split for split in ('train', 'test') if split not in splits)} images"


def examine_split(dataset: Dataset, split: str) -> Facts:
    """Counts, sizes and modes of a split, its broken images, and a hash over all its bytes."""
    labels, total = dataset.labels(split), dataset.full_count(split)
    found = (None, None) if labels is None else np.unique(labels, return_counts=True)
    names = dataset.classes or []
    sources = with_progress(dataset.encoded_images(split), f"check {split}", total)
    looks = (facts for _, facts in each_in_threads(inspect_image, sources, IMAGES_AHEAD))
    facts = {
        "images": total,
        "images_of_class": {names[i]: int(n) for i, n in zip(*found, strict=True)}
        if names and found[1] is not None
        else {},
        **(summary_of(looks) or pixels_of(dataset, split)),
    }
    if dataset.contents_hash(split) not in (None, facts["contents"]):
        facts["broken"] = [*facts["broken"], f"{split} does not hold the images that were packed: put back a copy"]
    return facts


def inspect_image(source: Path | Blob) -> ImageFacts:
    """One image, decoded in full."""
    try:
        data = source.data if isinstance(source, Blob) else source.read_bytes()
    except OSError as error:
        return ImageFacts(str(source), b"", problem=str(error))
    digest = hashlib.sha256(data).digest()
    try:
        decode(Blob(str(source), data), None)
        with Image.open(BytesIO(data)) as image:
            return ImageFacts(str(source), digest, image.mode, image.size, no_exif=not has_sound_exif(image))
    except MissingError as error:
        return ImageFacts(str(source), digest, problem=str(error))


def summary_of(looks: Iterator[ImageFacts]) -> Facts:
    """Sizes, modes, problems and a hash; empty when there was nothing to look at."""
    contents, modes = hashlib.sha256(), Counter[str]()
    sizes = array("I")
    broken: list[str] = []
    no_exif: list[str] = []
    for seen in looks:
        contents.update(seen.digest)
        if seen.problem:
            broken.append(seen.problem)
        else:
            modes[seen.mode] += 1
            sizes.extend(seen.size)
            no_exif += [seen.name] if seen.no_exif else []
    if not sizes and not broken:
        return {}
    whole = np.frombuffer(sizes, dtype=np.uint32).reshape(-1, 2)
    facts = {"modes": dict(modes.most_common()), "exif_unreadable": no_exif, "broken": broken}
    return {**size_range(whole), **facts, "contents": contents.hexdigest()}


def size_range(whole: np.ndarray) -> Facts:
    """Smallest, median and largest width and height of (N, 2), each by itself."""
    if not len(whole):
        return {}
    found = {"min": whole.min(0), "median": np.median(whole, axis=0).astype(int), "max": whole.max(0)}
    return {f"{name}_size": [int(side) for side in pair] for name, pair in found.items()}


def pixels_of(dataset: Dataset, split: str) -> Facts:
    """Facts of a split whose dataset holds pixels instead of files."""
    contents, total = hashlib.sha256(), dataset.full_count(split)
    for start in with_progress(range(0, total, PIXELS), f"check {split}, {PIXELS} images each", -(-total // PIXELS)):
        pixels = dataset.images(split, np.arange(start, min(start + PIXELS, total)))
        contents.update(np.ascontiguousarray(pixels).data)
    side = np.array([[pixels.shape[2], pixels.shape[1]]])
    return {**size_range(side), "modes": {}, "broken": [], "contents": contents.hexdigest()}


# -------------------------------------------------------------------------------------------------- the screen


def show(config: Config, report: Facts, before: Facts | None) -> None:
    """The report as people read it."""
    line(f"{config.dataset.name}  {config.dataset.options.get('root') or ''}")
    for name, split in report["splits"].items():
        line(f"  {name:<12} {plural(split['images'], 'image')}{classes_of(split)}")
        if "min_size" in split:
            sizes = " / ".join("x".join(map(str, split[f"{which}_size"])) for which in ("min", "median", "max"))
            modes = ", ".join(f"{mode} {count}" for mode, count in split["modes"].items())
            line(f"  {'':<12} width x height, min / median / max: {sizes}" + (f"; {modes}" if modes else ""))
        show_notes(split)
    if report["left_out"]:
        line(f"  not used     {report['left_out']}")
    if report["empty_classes"]:
        line(f"  empty        class folders without an image: {', '.join(report['empty_classes'])}")
    for problem in report["broken"][:BROKEN_SHOWN]:
        print(printable(f"  broken       {problem}"), file=sys.stderr)
    line(f"  broken       {len(report['broken']) or 'none'} of {report['found']}")
    if report["unprobed"]:
        line(f"  no numbers   a run will train and not be probed: {report['unprobed']}")
    line(f"  fingerprint  {report['fingerprint']}; contents {report['contents']}{against_last_check(report, before)}")


def show_notes(split: Facts) -> None:
    """What is known of a split's images only by a rule, or not at all."""
    if by_range := sum(count for mode, count in split["modes"].items() if mode in ("I", "F")):
        line(f"  {'':<12} {by_range} of 32 bits: white is 1, 255 or 65,535, by the largest value of each")
    if nameless := split.get("exif_unreadable"):
        names = few(nameless)
        line(f"  {'':<12} {len(nameless)} with EXIF that cannot be read, taken as they are stored: {names}")


def classes_of(split: Facts) -> str:
    """', 10 classes of 500 to 512', or nothing where there are no classes."""
    counts: dict[str, Any] = split["images_of_class"]
    if not counts:
        return ""
    few, many = min(counts.values()), max(counts.values())
    return f", {plural(len(counts), 'class', 'classes')} of {few}" + (f" to {many}" if many > few else "")


def against_last_check(report: Facts, before: Facts | None) -> str:
    """How the contents stand to those of the last check."""
    if not before:
        return ""
    same = before.get("contents") == report["contents"]
    return f", {'the same as' if same else 'NOT those of'} the check of {before.get('created')}"
