"""`rela clean`: remove what nobody will read again; more only when asked, and never silently what a run still needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import Timeout

from rela_cli.config.arguments import Parser
from rela_cli.data.files.shard_index import unused_indices
from rela_cli.errors import DiskError
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import remove_tree
from rela_cli.store.locks import NO_LOCKS, lock_problem
from rela_cli.store.outputs import CacheEntry, Inventory, Leftover, RunFolder, size_text, take_inventory
from rela_cli.terminal import as_size, few, line

EXPLANATION = """\
It always removes leftovers of killed processes, damaged entries that were set aside, and indices of tar shards and
chunks that are gone or have changed. It never removes run folders. A run makes again what it misses in the cache."""


def main(argv: list[str]) -> int:
    """Say what goes and what stays, and remove the former unless it is a dry run."""
    given = parser().read(argv)
    found = take_inventory(given.outputs)
    problem = lock_problem(found.outputs)
    if problem and problem.errno in NO_LOCKS and not given.dry_run:
        raise DiskError(f"nothing is removed: what is in use cannot be told in {found.outputs} ({problem.strerror})")
    levels = [name for name in ("unused", "finished", "resumable") if getattr(given, name)]
    going = [entry for entry in found.entries if level(entry) in levels]
    with disk_errors(found.outputs):
        leftovers = [*found.leftovers, *unused_indices(found.outputs)]
        freed = sum(drop_leftover(x, given.dry_run) for x in leftovers)
        freed += sum(drop_entry(entry, given.dry_run) for entry in going)
    tell_what_stays(found, going)
    line(f"{'would free' if given.dry_run else 'freed'} {as_size(freed)}")
    return 0


def parser() -> Parser:
    """The command line of `rela clean`."""
    made = Parser(
        "clean",
        "Removes what is not needed under outputs/.",
        ["rela clean --dry-run", "rela clean --unused"],
        EXPLANATION,
    )
    made.add_outputs()
    made.add("-n", "--dry-run", action="store_true", help="show what would be removed, remove nothing")
    made.add("--unused", action="store_true", help="also cache entries that no run uses")
    made.add("--finished", action="store_true", help="also entries that only finished runs use")
    made.add("--resumable", action="store_true", help="also entries that unfinished runs need to continue")
    made.add_old_outputs()
    return made


def level(entry: CacheEntry) -> str:
    """Which word makes an entry go: unused, finished, or resumable."""
    if not entry.users:
        return "unused"
    return "resumable" if open_runs(entry) else "finished"


def open_runs(entry: CacheEntry) -> list[RunFolder]:
    """Runs that would go on from an entry."""
    return [run for run in entry.users if run.is_open]


def drop_leftover(leftover: Leftover, dry: bool) -> int:
    """Bytes freed."""
    if not dry:
        remove(leftover.path)
    line(f"  {'would go' if dry else 'gone':<9}{size_text(leftover.bytes)}  {leftover.path}  {leftover.why}")
    return leftover.bytes


def drop_entry(entry: CacheEntry, dry: bool) -> int:
    """Bytes freed; an entry that a process is at stays."""
    waiting = open_runs(entry)
    names = few([f"{run.title} ({run.status})" for run in waiting])
    warning = f"  NEEDED by {names}, which would make it again" if waiting else ""
    if entry.folder.is_symlink():
        warning += f"  a link; what it points to stays: {entry.folder.resolve()}"
    if any(run.status == "running" for run in entry.users) or not (entry.lock.is_free() if dry else take_away(entry)):
        line(f"  {'in use':<9}{size_text(entry.bytes)}  {entry.title}  stays: a process is at work with it")
        return 0
    line(f"  {'would go' if dry else 'gone':<9}{size_text(entry.bytes)}  {entry.title}{warning}")
    return entry.bytes


def take_away(entry: CacheEntry) -> bool:
    """Remove an entry, unless a process is at it."""
    with suppress(Timeout), entry.lock.held(timeout=0):
        remove(entry.folder)
        return True
    return False


def remove(path: Path) -> None:
    """A file, a link or a folder; a folder first gets out of the way under another name, so that no half is found."""
    if path.is_dir() and not path.is_symlink() and path.suffix != ".tmp":
        path = path.replace(path.with_name(f".{path.name}.tmp"))
    remove_tree(path)


def tell_what_stays(found: Inventory, going: Sequence[CacheEntry]) -> None:
    """What else could go, and at what price."""
    staying = [entry for entry in found.entries if entry not in going]
    for word, price in (
        ("unused", "no run uses them"),
        ("finished", "only finished runs use them: another probe would make them again"),
        ("resumable", "unfinished runs go on from them"),
    ):
        some = [entry for entry in staying if level(entry) == word]
        if some:
            size = as_size(sum(entry.bytes for entry in some))
            line(f"  {'stays':<9}{size.rjust(9)}  {len(some)} cache entries; {price} (--{word})")
