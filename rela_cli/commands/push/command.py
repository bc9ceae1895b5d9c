"""`rela push RUN|FOLDER OWNER/NAME`: a run's backbone, or an efficient dataset, into a repository of the hub."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from rela_cli.commands.export import formats
from rela_cli.commands.export.command import add_licence, add_run, backbone_of, fill_export, identity_of
from rela_cli.commands.push.efficient import fill_dataset, is_dataset
from rela_cli.commands.push.hub import check_hub, upload
from rela_cli.config.arguments import Choice, Parser
from rela_cli.errors import ConfigError
from rela_cli.store.outputs import size_text
from rela_cli.terminal import line

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
EXAMPLE = "rela push latest alice/my-backbone"
SHOWN = 12  # files that are named one by one
OF_NETWORKS = {"--format": "format", "--network": "network", "--allow": "allow"}  # flags that say nothing of a dataset


def main(words: list[str]) -> int:
    """Write what is uploaded into a temporary folder and upload it; --dry-run shows what would be uploaded.

    Raises:
        ConfigError: no repository, no token, no huggingface_hub, or a format that cannot hold the network.
        MissingError: an efficient dataset that is not whole.
        RelaError: the hub cannot be reached, or refuses.
    """
    made = parser()
    given = made.read(words)
    if not given.repository or not REPOSITORY.fullmatch(given.repository):
        shown_as = f" (given: {given.repository or given.run})"
        raise ConfigError(f"say a run, and a repository as OWNER/NAME: {EXAMPLE}{shown_as}")
    if is_dataset(Path(given.run).expanduser()):
        no_words_about_networks(given, made)
        push_dataset(given)
    else:
        push_backbone(given)
    return 0


def push_backbone(given: argparse.Namespace) -> None:
    """Export a run's backbone and send it."""
    backbone = backbone_of(given)
    formats.check(backbone, given.format)
    if not given.dry_run:
        check_hub()
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        apart = fill_export(backbone, given.format, folder, identity_of(backbone, given.format))
        line(f"  network   {backbone.run.folder.name}")
        line(f"  checked   {given.format}, loaded back: features differ by {apart:.0e} of the largest one")
        send(given, folder, backbone.run.folder.name, "model")


def push_dataset(given: argparse.Namespace) -> None:
    """Send an efficient dataset, whose files are all read and compared first."""
    if not given.dry_run:
        check_hub()
    root = Path(given.run).expanduser()
    with TemporaryDirectory() as place:
        folder = Path(place) / "dataset"
        line(f"  dataset   {root}")
        fill_dataset(root, folder, given.licence, given.repository)
        send(given, folder, root.resolve().name, "dataset")
    line(f"  to use it hf download {given.repository} --repo-type dataset --local-dir FOLDER")


def no_words_about_networks(given: argparse.Namespace, made: Parser) -> None:
    """A flag that would change nothing is refused.

    Raises:
        ConfigError: there is one.
    """
    idle = [flag for flag, name in OF_NETWORKS.items() if getattr(given, name) != made.get_default(name)]
    if idle:
        raise ConfigError(f"{given.run} is an efficient dataset, and {', '.join(idle)} is about networks: leave it out")


def send(given: argparse.Namespace, folder: Path, name: str, kind: str) -> None:
    """Show the files, and upload them unless it is a dry run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files[:SHOWN]:
        line(f"  file      {size_text(path.stat().st_size)}  {path.relative_to(folder)}")
    if more := files[SHOWN:]:
        line(f"  file      {size_text(sum(path.stat().st_size for path in more))}  in {len(more)} more")
    where = f"{given.repository} ({'private' if given.private else 'public'} {kind})"
    if given.dry_run:
        line(f"  a dry run: nothing was sent to {where}")
    else:
        line(f"  uploaded  {upload(folder, given.repository, given.private, name, kind)}")


def parser() -> Parser:
    """The command line of `rela push`."""
    made = Parser(
        "push",
        "Uploads a run's backbone, as `rela export` writes it, to the Hugging Face hub. With the folder of an "
        "efficient dataset in place of RUN it uploads that. A missing repository is made.",
        [EXAMPLE, "rela push latest alice/my-backbone --dry-run", "rela push cifar10-dinov2 alice/cifar10-dinov2"],
    )
    add_run(made)
    made.add_argument("repository", nargs="?", metavar="OWNER/NAME", help="the repository on the hub")
    form = Choice("--format", formats.FORMATS)
    made.add_argument(
        "--format",
        type=form,
        default="huggingface",
        metavar="FORMAT",
        help=f"{', '.join(formats.FORMATS)} (default: huggingface)",
    )
    add_licence(made)
    made.add_argument("--private", action="store_true", help="if the repository is made, make it private")
    made.add_argument(
        "--dry-run", action="store_true", help="show what would be uploaded; needs no token and no network"
    )
    return made
