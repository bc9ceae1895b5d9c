"""Archives and data sets from the network: fast to fail, and whole or not there."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.response import addinfourl

from rela_cli.data.decoding.images import is_image
from rela_cli.data.files.archives import unpack_one
from rela_cli.errors import MissingError
from rela_cli.machine.network import unreachable
from rela_cli.store.locks import Lock

SILENCE_SECONDS = 20  # a download that is silent for this long has failed; torchvision itself would wait for ever


@contextmanager
def quick_to_fail(url: str | None) -> Iterator[None]:
    """A download inside fails within seconds where there is no network, instead of hanging.

    Raises:
        OSError: the host of `url` cannot be reached.
    """
    if url and (why := unreachable(url)):
        raise OSError(f"{urlparse(url).hostname or url}: {why}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch_archive(name: str, url: str, folder: Path, md5: str, way_out: str) -> None:
    """Download an archive, checked by its md5, and unpack the one folder that it holds as `folder`.

    Raises:
        MissingError: it cannot be fetched.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    root = folder.parent
    archive = root / url.rpartition("/")[2]

    def fetch() -> None:
        if not check_integrity(str(archive), md5):
            with quick_to_fail(url):
                download_url(url, str(root), archive.name, md5)

    try:
        unpack_one(archive, folder, fetch)
    except (RuntimeError, OSError) as error:
        raise MissingError(f"{name} is not in dataset.root={root} and could not be fetched ({error}): {way_out}") from (
            error
        )


@contextmanager
def taken_from(root: Path, taken: list[Path]) -> Iterator[None]:
    """Inside, a download takes the file of its name that lies below `root`, if there is one; else the network.

    Those taken go into the list. torchvision itself looks for an archive in one place alone.
    """
    lying = {path.name: path for path in files_below(root)}
    urlopen = urllib.request.urlopen

    def near(request: Any, *arguments: Any, **options: Any) -> Any:
        url = request if isinstance(request, str) else request.full_url
        if path := lying.get(unquote(urlparse(url).path.rpartition("/")[2])):
            taken.append(path)
            response = addinfourl(path.open("rb"), Message(), url, 200)
            response.length = path.stat().st_size  # type: ignore[attr-defined]
            return response
        if why := unreachable(url):
            raise URLError(f"{urlparse(url).hostname or url}: {why}")
        return urlopen(request, *arguments, **options)

    urllib.request.urlopen = near  # type: ignore[assignment]
    try:
        yield
    finally:
        urllib.request.urlopen = urlopen


def files_below(root: Path) -> Iterator[Path]:
    """Files in a folder and in the two floors of folders below it, but for images and what is hidden."""
    for folder, folders, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if depth < 2 and name[0] != ".")
        yield from (Path(folder, name) for name in files if name[0] != "." and not is_image(name))


def open_torchvision(name: str, title: str, expected: str, root: str, download: bool, **options: Any) -> Any:
    """torchvision's class `name`, fetched into `root` first if it is not there and may be.

    Raises:
        MissingError: it is not there, with what is expected in `root`. ValueError: no split of that name.
    """
    import torchvision.datasets

    make = partial(getattr(torchvision.datasets, name), **options)
    taken: list[Path] = []
    try:
        return make(root, download=False)
    except Exception as error:  # torchvision raises whatever reading a part of a file leads to
        why = refuse_split(error)
    try:
        if not download:
            raise OSError(f"dataset.download=false; {type(why).__name__}: {why}") from why
        fetch_dataset(name, make, Path(root).expanduser(), taken)
        return make(root, download=False)
    except Exception as error:
        way_out = "" if download else "say dataset.download=true, "
        mine = f" (the file {taken[0]} was tried)" if taken else ""
        raise MissingError(
            f"{title} is not in dataset.root={root} and could not be fetched ({refuse_split(error)}){mine}. "
            f"Put {expected} there, {way_out}or use dataset=image_folder dataset.root=FOLDER"
        ) from error


def refuse_split(error: Exception) -> Exception:
    """An error, unless it is torchvision's answer to the name of a split that it does not know, which is raised."""
    if isinstance(error, ValueError) and "argument split" in str(error):
        raise error
    return error


def fetch_dataset(name: str, make: Callable[..., Any], root: Path, taken: list[Path]) -> None:
    """Download and unpack beside its place, by one process while others wait, and move what is whole into `root`.

    Files that lie there and are taken instead of a download go into `taken`.
    """
    root.mkdir(parents=True, exist_ok=True)
    part, lock = root / f".{name}.part", root / f".{name}.lock"
    with Lock(lock, f"{name} in {root}").held():
        shutil.rmtree(part, ignore_errors=True)  # of a killed process; we hold the lock
        try:
            with suppress(Exception):  # another process has fetched it meanwhile
                make(str(root), download=False)
                return
            with quick_to_fail(None), taken_from(root, taken):
                make(str(part), download=True)
            move_into(part, root)
            lock.unlink(missing_ok=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def move_into(part: Path, root: Path) -> None:
    """Each folder that is not there yet as a whole, in one step; files that are there stay."""
    for path in sorted(part.iterdir(), key=lambda path: path.is_dir()):  # what archives hold comes behind them
        target = root / path.name
        if not target.exists():
            path.replace(target)
        elif path.is_dir():
            move_into(path, target)
