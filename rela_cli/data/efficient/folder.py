"""An efficient dataset on disk: the targets of a dataset, made once, in a folder that can be copied and published.

    efficient.json                       all facts, with the sha256 of each file and of itself; written last
    README.md                            the card, for people and for dataset hubs
    train-00000-of-00002.safetensors     some samples of a split, in order: a column each (SHARD_COLUMNS)
    transport.safetensors                the fitted map, so that new images can be mapped into the same space
    images/                              with images=copy: the images as a pack (data/packed.py)

`rela convert` writes it (commands/convert/). Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import safe_open

from rela_cli.errors import MissingError
from rela_cli.store.files import Facts, load_json, reason_of
from rela_cli.store.integrity import file_damage
from rela_cli.store.sealed import Damaged

EFFICIENT_FORMAT = 1
FACTS, BEGUN, CARD, MAP, IMAGES = "efficient.json", "converting.json", "README.md", "transport.safetensors", "images"
SHARD_COLUMNS = {
    "targets": "(n, k) fp16, or fp32 where fp16 cannot hold them: what a learner is matched to",
    "row": "(n,) int64: the sample's number in the dataset that was converted",
    "sha256": "(n, 32) uint8: hash of the image file, or of the pixels (H, W, 3) where there are no files",
    "label": "(n,) int64, where there are labels",
    "name": "(bytes,) uint8, where there are files: the paths below the dataset's folder, one behind the other",
    "name_end": "(n,) int64: where each path ends",
}
NEEDED_KEYS = ("format", "dataset", "prior", "transport", "splits", "spec", "made", "images", "files")
EDITED = "if people edited it, all is well, since only people read it; else put back a copy"
MEND = "put back a copy, or remove it and say the same `rela convert` again"


class EfficientFolder:
    """An efficient dataset whose files are `whole`, as far as their sizes tell; all but the card.

    Raises:
        MissingError: no such folder, one that is not finished, of another format, or with a file that is not whole.
    """

    def __init__(self, root: str | Path, whole: bool = True) -> None:
        self.root = Path(root).expanduser()
        self.facts = read_facts(self.root)
        needed = [name for name in self.facts["files"] if name != CARD]  # people may edit the card, on a hub too
        if whole and (problems := list(self.problems(contents=False, names=needed))):
            raise MissingError(problems[0])

    def problems(self, contents: bool, names: Container[str] | None = None, afresh: bool = False) -> Iterator[str]:
        """A line for each file (of `names`) that is not what was written: by its size, or by all its bytes."""
        for name, facts in self.facts["files"].items():
            if (names is None or name in names) and (problem := file_damage(self.root / name, facts, contents, afresh)):
                yield f"{self.root / name} {problem}: {EDITED if name == CARD else MEND}"

    @property
    def splits(self) -> dict[str, Facts]:
        """The facts of each split: samples, shards, whether it has labels and names, and the type of the targets."""
        return dict(self.facts["splits"])

    @property
    def spec(self) -> dict[str, Facts]:
        """What images, features and targets are made of, as the cache's names have it."""
        return dict(self.facts["spec"])

    @property
    def views(self) -> Facts | None:
        """The facts of light views: how many of each train image, where they are cut, their shards; None without."""
        found: Facts | None = self.facts.get("views")
        return found

    def view_shards(self) -> list[Path]:
        """The files of the light views, in order."""
        return [self.root / name for name in (self.views or {}).get("shards", ())]

    def shards(self, split: str) -> list[Path]:
        """The files of a split, in order."""
        return [self.root / name for name in self.splits[split]["shards"]]

    def column(self, split: str, name: str) -> np.ndarray:
        """A column of all samples of a split; read into memory."""
        return np.concatenate([read_column(path, name) for path in self.shards(split)])

    def has(self, split: str, name: str) -> bool:
        """Whether a split has a column."""
        with safe_open(self.shards(split)[0], "np") as file:
            return name in file.keys()  # noqa: SIM118 - it is no mapping

    def names(self, split: str) -> list[str]:
        """The path of each sample below the folder of its dataset; none where the samples are no files."""
        return [name for path in self.shards(split) for name in names_in(path)] if self.has(split, "name") else []

    @cached_property
    def card(self) -> Facts:
        """The front matter of the card: what `README.md` says to programs."""
        import yaml

        text = (self.root / CARD).read_text(encoding="utf-8")
        return dict(yaml.safe_load(text.split("---\n")[1]))


def read_column(path: Path, name: str) -> np.ndarray:
    """A column of one shard."""
    with safe_open(path, "np") as file:
        return np.asarray(file.get_tensor(name))


def names_in(path: Path) -> Iterator[str]:
    """The paths in one shard."""
    data, start = read_column(path, "name").tobytes(), 0
    for end in read_column(path, "name_end").tolist():
        yield os.fsdecode(data[start:end])
        start = end


def read_facts(root: Path) -> Facts:
    """efficient.json, if it is one that this version can read.

    Raises:
        MissingError: it is not.
    """
    path = root / FACTS
    try:
        facts, has_seal = load_json(path)
    except FileNotFoundError:
        raise MissingError(f"{root} holds {why_not_there(root)}") from None
    except (OSError, Damaged) as error:
        raise MissingError(f"{path} is damaged: {reason_of(error)}; {MEND}") from error
    if facts.get("format") != EFFICIENT_FORMAT:
        raise MissingError(f"{path} is of format {facts.get('format')}, and this rela reads format {EFFICIENT_FORMAT}")
    if not has_seal or any(key not in facts for key in NEEDED_KEYS) or not all(map(is_inside, facts["files"])):
        raise MissingError(f"{path} is not what `rela convert` writes; {MEND}")
    return facts


def why_not_there(root: Path) -> str:
    """In words, where there is no efficient.json."""
    if (root / BEGUN).exists():
        return "an efficient dataset that is not finished: the same `rela convert` goes on with it"
    return "no efficient dataset: `rela convert dataset=... prior=... --to FOLDER` makes one"


def is_inside(name: Any) -> bool:
    """Whether a name from a file of anybody's stays below its folder."""
    path = PurePosixPath(str(name))
    return not path.is_absolute() and ".." not in path.parts
