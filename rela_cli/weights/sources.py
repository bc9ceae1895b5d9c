"""Where weights can be fetched from, and how."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError, MissingError, first_line
from rela_cli.machine.network import unreachable
from rela_cli.store.integrity import digest


@dataclass(frozen=True)
class WeightSource:
    """A file elsewhere: hf://OWNER/REPOSITORY/FILE on the model hub, or a URL in torch's own hub cache."""

    text: str

    @property
    def is_hub(self) -> bool:
        return self.text.startswith("hf://")

    @property
    def repository(self) -> str:
        return "/".join(self.text.removeprefix("hf://").split("/")[:2])

    @property
    def file(self) -> str:
        return self.text.removeprefix("hf://").split("/", 2)[2] if self.is_hub else self.text.rsplit("/", 1)[1]

    @property
    def address(self) -> str:
        """Whom to ask."""
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co") if self.is_hub else self.text

    @property
    def folder(self) -> Path:
        """Where the file lies once it is there."""
        if self.is_hub:
            from huggingface_hub import constants

            return Path(constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}"
        cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
        return Path(cache).expanduser() / "hub" / "checkpoints"

    def cached(self) -> Path | None:
        """The file, if it is in the cache."""
        if not self.is_hub:
            return self.folder / self.file if (self.folder / self.file).is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self.file)
        return Path(found) if isinstance(found, str) else None

    def download(self) -> Path:
        """Fetch it into the cache; the libraries show progress, and check the size or the hash in the name."""
        if self.is_hub:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.repository, self.file))
        from torch.hub import download_url_to_file

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.file
        prefix = path.stem.rpartition("-")[2]
        download_url_to_file(self.text, str(path), prefix if len(prefix) == 8 else None)
        return path


def fetch(prior: Part) -> Path:
    """The card's file, from the cache or from where it is published.

    Raises:
        MissingError: within a few seconds when there is no network; it names the file, the cache and the ways out.
    """
    sources = [WeightSource(text) for text in sources_of(prior)]
    path = next((path for source in sources if (path := source.cached())), None)
    if path is None:
        if why := _offline(sources[0]):
            raise MissingError(_missing(prior, sources[0], why))
        path = _download(prior, sources)
    _check_sha256(prior, path)
    return path


def sources_of(prior: Part) -> list[str]:
    """From the card, else from the library that knows the model."""
    if prior.card.source:
        return [prior.card.source]
    module, _, name = prior.target.rpartition(".")
    ask = getattr(getattr(import_module(module), name), "sources", None)
    found: list[str] = ask(**prior.options) if ask else []
    if not found:
        raise ConfigError(
            f"nobody publishes weights for prior={prior.name} prior.model={prior.options.get('model')}; "
            f"say prior.weights=PATH, or prior.weights=random for an untrained network that is called so"
        )
    return found


def _offline(source: WeightSource) -> str | None:
    """Why a source cannot be asked now, None when it can."""
    if source.is_hub and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    why = unreachable(source.address)
    return f"{_host(source.address)} cannot be reached: {why}" if why else None


def _download(prior: Part, sources: list[WeightSource]) -> Path:
    """The first source that can be had."""
    problems = []
    for source in sources:
        print(f"fetching {source.file}{_size(prior)} from {_host(source.address)} into {source.folder}", flush=True)
        try:
            return source.download()
        except Exception as error:  # every library has its own
            problems.append(first_line(error))
    raise MissingError(_missing(prior, sources[0], "fetching it failed: " + "; ".join(problems)))


def _check_sha256(prior: Part, path: Path) -> None:
    wanted = prior.card.sha256
    if wanted and not digest(path).startswith(wanted):
        raise MissingError(
            f"{path} is not the file that prior={prior.name} names: its sha256 is {digest(path)[:16]}..., "
            f"not {wanted[:16]}... Remove it, and it is fetched again; or say prior.weights=PATH"
        )


def _missing(prior: Part, source: WeightSource, why: str) -> str:
    """The message: what, where it would lie, why it is not there, and the ways out."""
    ways = [
        f"rela fetch prior={prior.name}   on a machine with network, then copy that folder here",
        "prior.weights=/path/to/file   your own copy of it",
        *(["HF_ENDPOINT=https://...   a mirror of the hub"] if source.is_hub else []),
        "prior=patches   needs no weights",
    ]
    home = source.repository if source.is_hub else source.text
    lines = [
        f"prior={prior.name} needs {source.file}{_size(prior)} of {home}",
        f"it is not in the cache, {source.folder}",
        why,
        "ways out:",
        *(f"  {way}" for way in ways),
    ]
    return "\n".join(lines)


def _size(prior: Part) -> str:
    return f" (about {prior.card.megabytes:g} MB)" if prior.card.megabytes else ""


def _host(address: str) -> str:
    return urllib.parse.urlsplit(address).netloc or address
