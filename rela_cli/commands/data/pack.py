"""`rela data pack`: the images of any dataset in a few large files, for dataset=packed."""

from __future__ import annotations

import shlex
from contextlib import ExitStack

from rela_cli.commands.data.packing import Encoding, Packer
from rela_cli.config.arguments import WholeNumber
from rela_cli.config.compose import Composer
from rela_cli.config.overrides import RunParser
from rela_cli.config.schema import Config
from rela_cli.data.base import open_dataset
from rela_cli.data.files.storage import LocalFolder, Storage, storage_of
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, remove_temporaries
from rela_cli.store.locks import Lock
from rela_cli.terminal import as_size, plural

MB = 1_000_000


def main(words: list[str]) -> int:
    """Pack a dataset, or go on with a pack that was interrupted; say how it is used."""
    given, line = parser().read_line(words)
    config = Composer(line).check()
    dataset = open_dataset(config)
    place = storage_of(given.to)
    with ExitStack() as stack:
        if isinstance(place, LocalFolder):
            stack.enter_context(disk_errors(place.root))
            place.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(place.root / ".lock", f"the pack {place}").held())
            remove_temporaries(place.root)
        if place.exists("pack.json"):
            print(f"  already there: {place}")
        facts = Packer(dataset, place, Encoding(given.size, given.quality), given.shard_mb * MB).run()
    show(config, place, facts)
    return 0


def parser() -> RunParser:
    """The command line of `rela data pack`."""
    made = RunParser(
        "data pack",
        "Copies the images of a dataset into a few large files, for dataset=packed. If it is interrupted, the same "
        "command continues.",
        [
            "rela data pack dataset=image_folder dataset.root=photos dataset.image_size=224 --to pack",
            "rela data pack dataset=imagenet1k dataset.root=FOLDER --to s3://bucket/pack --size 256 --quality 90",
        ],
    )
    to = "a folder, or an address such as s3://bucket/pack"
    made.add_to("PLACE", to, "--to FOLDER, or an address such as --to s3://bucket/pack")
    anew = "encode again as JPEG with this shorter side (default: copy as stored)"
    made.add("--size", metavar="PIXELS", type=WholeNumber("--size", 4, 100_000), help=anew)
    quality = WholeNumber("--quality", 1, 100)
    made.add("--quality", metavar="1..100", type=quality, help="quality of these JPEGs (default: 90)")
    size = WholeNumber("--shard-mb", 1, 1_000_000)
    made.add("--shard-mb", metavar="MB", type=size, default=1024, help="size of a file (default: 1024)")
    return made


def encoded_anew(how: Facts) -> str:
    """An encoding in words."""
    size = f"{how['size']}x{how['size']} pixels" if how["size"] else "the sizes that they had"
    return f"encoded anew as JPEGs of quality {how['quality']}, {size}"


def show(config: Config, place: Storage, facts: Facts) -> None:
    """What was packed, and the command that trains on it."""
    for split, part in facts["splits"].items():
        size = sum(shard["bytes"] for shard in part["shards"])
        files = plural(len(part["shards"]), "file")
        print(f"  {split:<12} {plural(part['samples'], 'image')} in {files}, {as_size(size)}")
    how = facts["encoding"]
    print(f"  images       {'as they were stored' if how is None else encoded_anew(how)}")
    options = config.dataset.options
    words = ["rela", "train", "dataset=packed", f"dataset.root={place}"]
    if side := options.get("image_size") or options.get("size"):
        words.append(f"dataset.image_size={side}")
    if not options.get("flip", True):
        words.append("dataset.flip=false")
    print(f"  to use it    {shlex.join(words)}")
