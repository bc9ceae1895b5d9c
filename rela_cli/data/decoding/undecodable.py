"""Images that cannot be decoded: an error when their turn comes, or left out by `dataset.on_error=skip`.

Which samples exist has to be known before the first step, and must not depend on what an epoch happens to draw. So with
`skip` every image is decoded once, also where images stay on disk; what was found is remembered under the files' names,
sizes and times. The names that were left out are part of the dataset's fingerprint, and stand in result.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from rela_cli.data.decoding.images import Blob, decode, decoder_message
from rela_cli.distributed import ranks
from rela_cli.errors import MissingError
from rela_cli.machine.processors import each_in_threads
from rela_cli.store.files import fingerprint, read_json, write_text
from rela_cli.store.notices import warn
from rela_cli.terminal import few, plural

Undecodable = dict[str, dict[str, str]]  # split -> name -> reason
Named = Iterable[tuple[str, Path | Blob]]
IMAGES_AHEAD = 2048  # images under way at a time


def left_out(splits: Mapping[str, Named], listing: str, cache: Path | None) -> Undecodable:
    """The images of each split that cannot be decoded; `listing` is the fingerprint that they are remembered under."""
    path = cache / "index" / listing / "broken.json" if cache else None
    note = (read_json(path) or {}) if path else {}
    found: Any = note.get("broken")
    if not is_broken(found) or note.get("check") != fingerprint(found):
        warn("decoding every image once, to find those that cannot be (dataset.on_error=skip)")
        found = {split: undecodable(named) for split, named in splits.items()}
        if path:
            with suppress(OSError):  # it would only have saved time
                path.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"broken": found, "check": fingerprint(found)}, indent=2)
                write_text(path, text)
    broken: Undecodable = found
    return broken


def is_broken(value: object) -> bool:
    """Whether what a file held is what we once wrote into it."""
    return isinstance(value, dict) and all(isinstance(names, dict) for names in value.values())


def warn_left_out(found: Undecodable, most: int) -> None:
    """One line about what is left out.

    Raises:
        MissingError: there are more than `most`.
    """
    names = [f"{split}/{name}" for split, reasons in found.items() for name in reasons]
    if len(names) > most:
        raise MissingError(
            f"{plural(len(names), 'image')} cannot be decoded, more than dataset.max_errors={most} allows: "
            f"{few(names)}. `rela data check` names them all"
        )
    if names:
        count = f"{plural(len(names), 'image')} cannot be decoded and {'is' if len(names) == 1 else 'are'}"
        warn(f"{count} left out: {few(names)} (result.json lists them)")


@cache
def say_once(line: str) -> None:
    """A line on stderr, once a process, from the first of several ranks."""
    if ranks.is_first():
        warn(line)


def undecodable(named: Named) -> dict[str, str]:
    """Why images cannot be decoded, by name; those that can are not in it. All are decoded in full, by threads."""
    found = each_in_threads(lambda pair: why_undecodable(pair[1]), named, IMAGES_AHEAD, os.cpu_count())
    return {name: problem for (name, _), problem in found if problem}


def why_undecodable(source: Path | Blob) -> str:
    """Why one image cannot be decoded; empty when it can."""
    try:
        decode(source, None)
    except MissingError as error:
        return decoder_message(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
    return ""
