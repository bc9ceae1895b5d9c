"""The Hugging Face hub: whether it can be written to, the upload, and what it raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rela_cli.errors import ConfigError, RelaError, first_line

LOG_IN = "say `hf auth login`, or set HF_TOKEN to a token that may write"


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


def upload(folder: Path, repository: str, private: bool, name: str, kind: str = "model") -> str:
    """Make the repository (`kind` model or dataset) if need be, and put the files there in one commit; its address.

    Raises:
        RelaError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    with hub_errors(repository):
        api = HfApi()
        api.create_repo(repository, private=private, repo_type=kind, exist_ok=True)
        said = f"rela: {name}"
        return str(api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, commit_message=said))


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
