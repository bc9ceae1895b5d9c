"""`rela show RUN`: one run: its state, its numbers, what it was made of, its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rela_cli.config.arguments import Parser
from rela_cli.pipeline.judging import result_lines as on_dataset
from rela_cli.pipeline.screen import comparison_words, cost
from rela_cli.store.beside import files_in
from rela_cli.store.files import Facts, read_json, section
from rela_cli.store.integrity import damage
from rela_cli.store.outputs import RunFolder, find_run, run_names, size_of, size_text, top1_by_protocol
from rela_cli.terminal import item, plural, unbroken

SHOWN_SETTINGS = ("budget", "epochs", "batch_size", "seed", "steps", "switch_step", "train_samples", "test_samples")


def main(argv: list[str]) -> int:
    """Print what is known of one run."""
    given = parser().read(argv)
    run = find_run(given.run, given.outputs)
    if given.json:
        facts = {"folder": str(run.folder), "status": run.status, "bytes": run.bytes}
        print(json.dumps({**facts, "manifest": run.facts, "result": run.result}, indent=1))
    else:
        for key, value in lines(run, given.outputs):
            item(key, value, 10)
    return 0


def parser() -> Parser:
    """The command line of `rela show`."""
    made = Parser(
        "show", "Shows one run: its state, numbers, inputs and files.", ["rela show", "rela show b0.5-s1 --json"]
    )
    a_run = "a folder, a name or a part of one (default: latest)"
    made.add("run", nargs="?", default="latest", metavar="RUN", help=a_run, offers=run_names)
    made.add_outputs()
    made.add("--json", action="store_true", help="one JSON object")
    return made


def lines(run: RunFolder, outputs: Path) -> Iterator[tuple[str, str]]:
    """What people read, line by line."""
    facts, result = run.facts, run.result
    yield "run", str(run.folder)
    yield "status", run.status + (f": {facts['reason']}" if facts.get("reason") else "")
    yield "made", f"{run.made.strip()} by process {facts.get('pid', '?')} on {facts.get('host', '?')}"
    yield "command", str(facts.get("command", "?"))
    yield "versions", ", ".join(unbroken(f"{name} {version}") for name, version in section(facts, "versions").items())
    if run.is_older:
        yield "older", "made by an older version; the same command makes a new run beside it"
    for key, value in top1_by_protocol(result).items():
        compared = comparison_words(result, key)
        yield "top-1", f"{100 * value:5.1f} %  {key}" + (f"  ({compared})" if compared else "")
    yield from retrieved(result)
    for path in files_in(run.folder):
        facts = read_json(path) or {}
        for number in on_dataset(facts):
            yield "on", f"{facts.get('dataset', '?')}: {number}"
    if spent := cost(result):
        yield "cost", spent
    known = {key: result[key] for key in SHOWN_SETTINGS if result.get(key) is not None}
    if known:
        yield "settings", ", ".join(unbroken(f"{key} {value}") for key, value in known.items())
    if skipped := section(result, "skipped").get("count"):
        yield "skipped", f"{plural(skipped, 'image')} that cannot be decoded (result.json lists them)"
    yield from inputs(run, outputs)
    for path in sorted(p for p in run.folder.iterdir() if p.name[0] != "."):
        yield "file", f"{size_text(size_of(path))}  {path.name}"
    if run.is_open:
        yield "next", str(facts.get("command", "the same command goes on"))


def retrieved(result: Facts) -> Iterator[tuple[str, str]]:
    """What knn says of retrieval: mean average precision and recall."""
    for key, number in section(result, "probe").items():
        values = number.items() if isinstance(number, dict) else ()
        words = [f"{name} {100 * value:.1f} %" for name, value in values if "@" in name and isinstance(value, float)]
        if words:
            yield "retrieval", f"{', '.join(words)}  ({key})"


def inputs(run: RunFolder, outputs: Path) -> Iterator[tuple[str, str]]:
    """Each cache entry that the run was made of, and whether it is there."""
    own = run.folder.parent.parent / "cache"
    cache = own if own.is_dir() else outputs / "cache"
    for kind, name in section(run.facts, "inputs").items():
        problem = damage(cache / kind / str(name))
        yield "input", f"{kind}/{name}  {problem or 'there'}"
