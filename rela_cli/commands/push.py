"""`rela push RUN OWNER/NAME`: an export of a run's backbone into a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from rela_cli.commands.export import formats
from rela_cli.commands.export.command import add_licence, add_run, backbone_of, fill_export, identity_of
from rela_cli.config.arguments import Choice, Parser
from rela_cli.errors import ConfigError, RelaError, first_line
from rela_cli.store.outputs import size_of, size_text
from rela_cli.terminal import line

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
EXAMPLE = "rela push latest alice/my-backbone"
LOG_IN = "say `hf auth login`, or set HF_TOKEN to a token that may write"


def main(words: list[str]) -> int:
    """Write the export into a temporary folder and upload it; --dry-run shows what would be uploaded.

    Raises:
        ConfigError: no repository, no token, no huggingface_hub, or a format that cannot hold the network.
        RelaError: the hub cannot be reached, or refuses.
    """
    given = parser().read(words)
    if not given.repository or not REPOSITORY.fullmatch(given.repository):
        shown_as = f" (given: {given.repository or given.run})"
        raise ConfigError(f"say a run, and a repository as OWNER/NAME: {EXAMPLE}{shown_as}")
    backbone = backbone_of(given)
    formats.check(backbone, given.format)
    if not given.dry_run:
        check_hub()
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        apart = fill_export(backbone, given.format, folder, identity_of(backbone, given.format))
        line(f"  network   {backbone.run.folder.name}")
        line(f"  checked   {given.format}, loaded back: features differ by {apart:.0e} of the largest one")
        for path in sorted(folder.iterdir()):
            line(f"  file      {size_text(size_of(path))}  {path.name}")
        where = f"{given.repository} ({'private' if given.private else 'public'})"
        if given.dry_run:
            line(f"  a dry run: nothing was sent to {where}")
        else:
            line(f"  uploaded  {upload(folder, given.repository, given.private, backbone.run.folder.name)}")
    return 0


def parser() -> Parser:
    """The command line of `rela push`."""
    made = Parser(
        "push",
        "Uploads a run's backbone, as `rela export` writes it, to the Hugging Face hub. "
        "A repository that is not there is made.",
        [EXAMPLE, "rela push latest alice/my-backbone --dry-run"],
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
    made.add_argument("--private", action="store_true", help="a repository that is made is private")
    made.add_argument(
        "--dry-run", action="store_true", help="show what would be uploaded; needs no token and no network"
    )
    return made


def check_hub() -> None:
    """Before any work: the library and a token are there, and the network is not switched off.

    Raises:
        ConfigError: not so.
    """
    if find_spec("huggingface_hub") is None:
        raise ConfigError("rela push needs huggingface_hub: pip install 'rela-cli[export]'")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError(f"no token for the Hugging Face hub: {LOG_IN}; --dry-run needs none")
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it, or say --dry-run")


def upload(folder: Path, repository: str, private: bool, run: str) -> str:
    """Make the repository if need be, and put the files there in one commit; its address.

    Raises:
        RelaError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    with hub_errors(repository):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"rela: {run}"))


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """What the hub and the network raise, as one error of one line.

    Raises:
        RelaError: in place of those.
    """
    try:
        yield
    except Exception as error:  # the library's own, and those of its library for HTTP
        code = getattr(getattr(error, "response", None), "status_code", None)
        why = first_line(error)
        reached = "the same command tries again" if code else "is the hub reachable? --dry-run needs no network"
        way_out = f"the token may not write there: {LOG_IN}" if code in (401, 403) else reached
        raise RelaError(f"{repository} was not uploaded: {why}; {way_out}") from error
