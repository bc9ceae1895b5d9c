"""Numbers beside a run: one file for each dataset that its backbone was judged on after training.

    RUN/on_<dataset>-<8 digits>.json

The digits are of the images and of the size at which the network saw them. The run's own files stay as they are. Of a
prior that nobody has trained here the files lie in outputs/priors/<name>-<8 digits>/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, fingerprint, keep_damaged, read_json, write_json
from rela_cli.store.locks import Lock
from rela_cli.store.names import slug

PATTERN = "on_*.json"
PRIORS_FOLDER = "priors"  # the folder of outputs/ with the numbers of priors


def path_of(folder: Path, dataset: str, of: Facts) -> Path:
    """Where the numbers on a dataset lie; `of` is what the numbers depend on besides the network."""
    return folder / f"on_{slug(dataset)}-{fingerprint(of)[:8]}.json"


def change(path: Path, changed: Callable[[Facts], Facts]) -> Facts:
    """Write `changed` of what the file holds, one process at a time; the new content. A damaged file is kept aside.

    Raises:
        DiskError: no room, or no leave to write.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with Lock(path.parent / ".on.lock", path.name).held():
            keep_damaged(path)
            facts = changed(read_json(path) or {})
            write_json(path, facts)
    return facts


def files_in(folder: Path) -> list[Path]:
    """The files of numbers beside a run, or of a prior."""
    return sorted(folder.glob(PATTERN))
