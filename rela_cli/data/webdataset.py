"""Tar shards as WebDataset writes them."""

from __future__ import annotations

from pathlib import Path

from rela_cli.data.files.shard_index import ShardIndex
from rela_cli.data.files.splits import split_files
from rela_cli.data.files.tars import index_of
from rela_cli.data.shards import IndexedShards
from rela_cli.errors import MissingError
from rela_cli.terminal import few

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
NAMES = "shards are called train-*.tar and test-*.tar or val-*.tar, or lie in folders called so"


class WebDataset(IndexedShards):
    """image_column: the extensions of images, such as jpg;png. label_column: the extension of the file with the class,
    a number or a name, or json.KEY for a key of the sample's JSON file.

    Raises:
        ConfigError: no root given, or a sample without an image. MissingError: no shards there, or a damaged one.
    """

    kind = "webdataset"
    without_labels = "dataset.label_column=EXTENSION, or json.KEY for a key of its JSON file"

    def find(self) -> dict[str, list[Path]]:
        files = split_files(self.root, ".tar")
        if not files["train"]:
            raise MissingError(f"dataset.root={self.root} {why_no_shards(self.root)}")
        return files

    def index_of(self, shard: Path) -> ShardIndex:
        extensions = [part.strip().lstrip(".").lower() for part in self.image_column.split(";") if part.strip()]
        return index_of(shard, extensions, self.label_column.lower().lstrip("."))


def why_no_shards(root: Path) -> str:
    """In words, where there are no shards to train on."""
    if not root.is_dir():
        return "is not a folder"
    packed = [path.name for path in root.rglob("*") if path.name.endswith(COMPRESSED)]
    if packed:
        return f"holds compressed shards ({few(packed, 2)}), which cannot be read by offsets: uncompress them (gunzip)"
    others = sorted(path.name for path in root.rglob("*.tar"))
    return f"holds no train*.tar ({'it has ' + few(others) if others else 'and no other .tar'}): {NAMES}"
