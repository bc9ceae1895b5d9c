"""`rela ls`: the runs and the cache, what they take, and who uses what."""

from __future__ import annotations

import json
from collections import Counter

from rela_cli.arguments import Parser
from rela_cli.artifacts import megabytes
from rela_cli.inventory import CacheEntry, Inventory, RunFolder, numbers, shown, take
from rela_cli.terminal import line


def main(argv: list[str]) -> int:
    """Print what lies in an outputs folder."""
    given = parser().read(argv)
    found = take(given.outputs)
    if given.json:
        print(json.dumps(as_json(found), indent=1))
    else:
        show(found)
    return 0


def parser() -> Parser:
    """The command line of `rela ls`."""
    made = Parser("ls", "What lies under outputs/, and what it is used by.", ["rela ls", "rela ls --outputs FOLDER"])
    made.add_outputs()
    made.add("--json", action="store_true", help="one JSON object")
    made.add_old_outputs()
    return made


def as_json(found: Inventory) -> dict[str, object]:
    """The same for programs."""
    return {
        "outputs": str(found.outputs),
        "runs": [
            {"folder": str(r.folder), "status": r.status, "bytes": r.bytes, "top1": numbers(r.result)}
            for r in found.runs
        ],
        "cache": [
            {
                "folder": str(e.folder),
                "bytes": e.bytes,
                "problem": e.problem,
                "used_by": [run.folder.name for run in e.users],
            }
            for e in found.entries
        ],
        "leftovers": [{"path": str(x.path), "bytes": x.bytes, "why": x.why} for x in found.leftovers],
    }


def show(found: Inventory) -> None:
    """One line a run, one an entry of the cache, and the totals."""
    line(f"runs  {len(found.runs)}, {megabytes(sum(run.bytes for run in found.runs))}")
    for run in found.runs:
        line(f"  {run.status:<9}{shown(run.bytes)}  {run.title}{top1(run)}")
    line(f"cache  {len(found.entries)} entries, {megabytes(sum(entry.bytes for entry in found.entries))}")
    for entry in found.entries:
        line(f"  {'damaged' if entry.problem else 'whole':<9}{shown(entry.bytes)}  {entry.title:<27} {users(entry)}")
    if found.leftovers:
        size = megabytes(sum(x.bytes for x in found.leftovers))
        line(f"leftovers  {len(found.leftovers)}, {size}: rela clean")


def top1(run: RunFolder) -> str:
    """'  rela 94.7, knn 95.6', or nothing yet."""
    found = numbers(run.result)
    return "  " + ", ".join(f"{key} {100 * value:.1f}" for key, value in found.items()) if found else ""


def users(entry: CacheEntry) -> str:
    """'used by 3 runs (2 finished, 1 stopped)'."""
    if not entry.users:
        return "used by no run"
    states = Counter(run.status for run in entry.users)
    several = "1 run" if len(entry.users) == 1 else f"{len(entry.users)} runs"
    return f"used by {several} ({', '.join(f'{count} {state}' for state, count in states.most_common())})"
