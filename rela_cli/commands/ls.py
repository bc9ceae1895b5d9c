"""`rela ls`: the runs and the cache, what they take, and who uses what."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from rela_cli.config.arguments import Parser
from rela_cli.store.outputs import Inventory, RunFolder, size_text, take_inventory, top1_by_protocol
from rela_cli.terminal import as_size, item, line, plural, unbroken

OLDER = "  older version"


def main(argv: list[str]) -> int:
    """Print what lies in an outputs folder."""
    given = parser().read(argv)
    found = take_inventory(given.outputs)
    if given.json:
        print(json.dumps(inventory_facts(found), indent=1))
    else:
        show(found, given.all)
    return 0


def parser() -> Parser:
    """The command line of `rela ls`."""
    made = Parser("ls", "Lists what is under outputs/, and which runs use it.", ["rela ls", "rela ls --outputs FOLDER"])
    made.add_outputs()
    made.add("--all", action="store_true", help="also each baseline (about a kilobyte each)")
    made.add("--json", action="store_true", help="one JSON object")
    made.add_old_outputs()
    return made


def inventory_facts(found: Inventory) -> dict[str, object]:
    """The inventory as a JSON object, for programs."""
    return {
        "outputs": str(found.outputs),
        "runs": [
            {
                "folder": str(run.folder),
                "status": run.status,
                "bytes": run.bytes,
                "created": run.facts.get("created"),
                "older": run.is_older,
                "top1": top1_by_protocol(run.result),
            }
            for run in found.runs
        ],
        "cache": [
            {
                "folder": str(e.folder),
                "bytes": e.bytes,
                "created": e.facts.get("created"),
                "older": e.is_older,
                "problem": e.problem,
                "used_by": [run.folder.name for run in e.users],
            }
            for e in found.entries
        ],
        "leftovers": [{"path": str(x.path), "bytes": x.bytes, "why": x.why} for x in found.leftovers],
    }


def show(found: Inventory, every: bool = False) -> None:
    """One line a run, one an entry of the cache, and the totals; of whole baselines one for all, unless `every`."""
    line(f"runs  {len(found.runs)}, {as_size(sum(run.bytes for run in found.runs))}")
    for run in found.runs:
        text = f"{run.title}{top1s(run)}{OLDER * run.is_older}"
        item(f"  {run.status:<9}{size_text(run.bytes)}  {run.made}", text, 40)
    entries = plural(len(found.entries), "entry", "entries")
    line(f"cache  {entries}, {as_size(sum(entry.bytes for entry in found.entries))}")
    summed = [] if every else [e for e in found.entries if e.kind == "baselines" and not e.problem]
    for entry in (entry for entry in found.entries if entry not in summed):
        state = "damaged" if entry.problem else "whole"
        use = users(entry.users) + OLDER * entry.is_older
        item(f"  {state:<9}{size_text(entry.bytes)}  {entry.made}", f"{entry.title:<27} {use}", 40)
    if summed:
        room, unused = sum(entry.bytes for entry in summed), sum(not entry.users for entry in summed)
        free = f", {unused} of them used by no run" if unused else ""
        entries = plural(len(summed), "entry", "entries")
        item(f"  {'whole':<9}{size_text(room)}", f"baselines, {entries}{free} (--all lists each)", 40)
    if found.leftovers:
        size = as_size(sum(x.bytes for x in found.leftovers))
        line(f"leftovers  {len(found.leftovers)}, {size}: rela clean")


def top1s(run: RunFolder) -> str:
    """'  rela 94.7, knn 95.6', or nothing yet."""
    found = top1_by_protocol(run.result)
    return "  " + ", ".join(unbroken(f"{key} {100 * value:.1f}") for key, value in found.items()) if found else ""


def users(runs: Sequence[RunFolder]) -> str:
    """'used by 3 runs (2 finished, 1 stopped)'."""
    if not runs:
        return "used by no run"
    states = Counter(run.status for run in runs)
    several = plural(len(runs), "run")
    return unbroken(f"used by {several} ({', '.join(f'{count} {state}' for state, count in states.most_common())})")
