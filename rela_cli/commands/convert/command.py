"""`rela convert`: makes an efficient dataset (data/efficient/folder.py says what that is) of any dataset and prior."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rela_cli.config.arguments import Choice, WholeNumber, folder_path
from rela_cli.config.compose import Composer, hand_over
from rela_cli.config.overrides import CommandLine, RunParser
from rela_cli.config.schema import HOMES, Config
from rela_cli.errors import ConfigError
from rela_cli.launch.job import Job, Single
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, remove_temporaries
from rela_cli.store.locks import Lock
from rela_cli.terminal import as_size, plural

MB = 1_000_000
IMAGES = {
    "link": "the folder notes where the images are, and they must stay there (the default)",
    "copy": "the folder also holds the images, as they are stored (pixels as PNG)",
    "none": "neither; to train on it say dataset.images=FOLDER",
}
WAY_OUT = "--to FOLDER"


@dataclass(frozen=True)
class ConvertRequest:
    """What the command line asks for."""

    to: Path
    images: str
    shard_bytes: int


def main(words: list[str]) -> int:
    """Make an efficient dataset, or go on with one that was interrupted; say how it is used.

    Raises:
        RelaError: it cannot be made, or another one lies there.
    """
    given, line = parser().read_line(words)
    request = ConvertRequest(given.to, given.images, given.shard_mb * MB)
    composer = Composer(line)
    config = composer.check()
    check(config, request)
    composer.say_notes()
    if not is_finished(config, request):
        make_targets(line)
        write(config, request)
    return 0


def parser() -> RunParser:
    """The command line of `rela convert`."""
    made = RunParser(
        "convert",
        "Writes an efficient dataset: the target that a prior gives for each image, with index, labels and a card, in "
        "a folder that can be copied and published. dataset=efficient trains on it, and so does your own loop "
        "(docs/api.md). If it is interrupted, the same command continues.",
        [
            "rela convert dataset=cifar10 prior=dinov2_vits14 --to cifar10-dinov2 --images copy",
            "rela convert prior=patches dataset=image_folder dataset.root=photos --to photos-patches",
            "rela train dataset=efficient dataset.root=cifar10-dinov2",
            "rela data check cifar10-dinov2",
        ],
    )
    made.add_to("FOLDER", "where it is written", WAY_OUT, type=folder_path)
    kinds = "; ".join(f"{kind}: {does}" for kind, does in IMAGES.items())
    made.add("--images", metavar="KIND", type=Choice("--images", tuple(IMAGES)), default="link", help=kinds)
    size = WholeNumber("--shard-mb", 1, 100_000)
    made.add("--shard-mb", metavar="MB", type=size, default=256, help="largest file of targets (default: 256)")
    return made


def check(config: Config, request: ConvertRequest) -> None:
    """There will be targets, and images that can be found again.

    Raises:
        ConfigError: there will not.
    """
    if not config.extracts:
        what = "prior=none gives no features" if config.is_plain else "an efficient dataset has its targets"
        raise ConfigError(f"{what}: say whose targets are to be made, prior=NAME transport=whitening")
    if config.has_tokens:
        raise ConfigError(
            "extract.tokens=true: an efficient dataset holds one target an image, and no feature maps; leave it out"
        )
    if config.dataset.name == "efficient" and request.images != "copy":
        raise ConfigError("the images of an efficient dataset can be copied, and not linked to: say --images copy")
    if request.images != "copy" and not config.dataset.target.startswith(HOMES["dataset"]):
        raise ConfigError(
            f"--images {request.images} needs a dataset of rela's own, and {config.dataset.target} is not: "
            f"say --images copy"
        )


def is_finished(config: Config, request: ConvertRequest) -> bool:
    """Whether the folder is there already, which is then said.

    Raises:
        RelaError: another efficient dataset lies there.
    """
    from rela_cli.commands.convert.writer import finished_folder

    facts = finished_folder(config, request.to, request.images, request.shard_bytes)
    if facts:
        print(f"  already there: {request.to}")
        show(request.to, facts)
    return bool(facts)


def make_targets(line: CommandLine) -> None:
    """What is missing of images, features and targets, as `rela transport` makes it: in the cache, by all ranks."""
    task = Single(Job("transport", line))
    hand_over("transport", line, task)
    if task.error:
        raise task.error


def write(config: Config, request: ConvertRequest) -> None:
    """The folder, by one process at a time."""
    from rela_cli.commands.convert.writer import Writer
    from rela_cli.pipeline.run import Run

    with disk_errors(request.to, way_out=WAY_OUT):
        request.to.mkdir(parents=True, exist_ok=True)
        with Lock(request.to / ".lock", f"the efficient dataset {request.to}").held():
            remove_temporaries(request.to)
            facts = Writer(Run(config), request.to, request.images, request.shard_bytes).run()
    show(request.to, facts)


def show(to: Path, facts: Facts) -> None:
    """What there is, and the command that trains on it."""
    for split, part in facts["splits"].items():
        print(f"  {split:<12} {part['samples']} x {part['width']} targets in {plural(len(part['shards']), 'file')}")
    if views := facts.get("views"):
        print(f"  {'views':<12} {views['count']} light views of each train image")
    size = as_size(sum(file["bytes"] for file in facts["files"].values()))
    print(f"  images       {facts['images']}: {IMAGES[facts['images']].partition(' (')[0]}")
    print(f"  files        {len(facts['files']) + 1}, {size}; {to / 'README.md'} is the card")
    more = ["dataset.images=FOLDER"] if facts["images"] == "none" and "root" in facts["dataset"]["options"] else []
    print(f"  to use it    {shlex.join(['rela', 'train', 'dataset=efficient', f'dataset.root={to}', *more])}")
