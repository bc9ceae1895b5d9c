"""Images that cannot be decoded: an error when their turn comes, or left out by `dataset.on_error=skip`.

Which samples exist has to be known before the first step, and must not depend on what an epoch happens to draw. So with
`skip` every image is decoded once, also where images stay on disk; what was found is remembered under the files' names,
sizes and times. The names that were left out are part of the dataset's fingerprint, and stand in result.json.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rela_cli.artifacts import read_json, warn, write_json
from rela_cli.data.images import Blob, decode
from rela_cli.errors import MissingError

Broken = dict[str, dict[str, str]]  # split -> name -> reason
Named = Iterable[tuple[str, Path | Blob]]
CHUNK = 2048  # images under way at a time
SHOWN = 3  # names in a message
ADDRESS = re.compile(r" <\S+ object at \w+>")  # Pillow names what it was given


def left_out(splits: Mapping[str, Named], listing: str, most: int, cache: Path | None) -> Broken:
    """The images of each split that cannot be decoded; `listing` is the fingerprint that they are remembered under.

    Raises:
        MissingError: there are more than `most`.
    """
    path = cache / "index" / listing / "broken.json" if cache else None
    found: Any = (read_json(path) or {}).get("broken") if path else None
    if not is_broken(found):
        warn("decoding every image once, to find those that cannot be (dataset.on_error=skip)")
        found = {split: problems(named) for split, named in splits.items()}
        if path:
            with suppress(OSError):  # it would only have saved time
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"broken": found})
    broken: Broken = found
    tell(broken, most)
    return broken


def is_broken(value: object) -> bool:
    """Whether what a file held is what we once wrote into it."""
    return isinstance(value, dict) and all(isinstance(names, dict) for names in value.values())


def tell(found: Broken, most: int) -> None:
    """One line about what is left out, or the error that it is too much."""
    names = [f"{split}/{name}" for split, reasons in found.items() for name in reasons]
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    if len(names) > most:
        raise MissingError(
            f"{len(names)} images cannot be decoded, more than dataset.max_errors={most} allows: {shown}. "
            f"`rela data check` names them all"
        )
    if names:
        warn(f"{len(names)} images cannot be decoded and are left out: {shown} (result.json lists them)")


def problems(named: Named) -> dict[str, str]:
    """Why images cannot be decoded, by name; those that can are not in it."""
    return {name: problem for name, problem in looked_at(iter(named)) if problem}


def looked_at(named: Iterator[tuple[str, Path | Blob]]) -> Iterator[tuple[str, str]]:
    """Every image, decoded in full by threads, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(named, CHUNK)):
            yield from zip((name for name, _ in chunk), pool.map(problem, (source for _, source in chunk)), strict=True)


def problem(source: Path | Blob) -> str:
    """Why one image cannot be decoded; empty when it can."""
    try:
        decode(source, None)
    except MissingError as error:
        return ADDRESS.sub("", str(error.__cause__ or error))
    return ""
