"""`rela bench`: the command line. Nothing heavy is imported before it is understood."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rela_cli.commands.bench.contest import Bench, BenchRow
from rela_cli.commands.bench.machine import all_versions, machine_load
from rela_cli.commands.bench.registry import BENCH_ROWS, PEERS, missing_package
from rela_cli.commands.bench.show import content, markdown_table, row_line
from rela_cli.config.arguments import Choice, Parser, WholeNumber
from rela_cli.errors import MissingError
from rela_cli.store.files import write_json

DESCRIPTION = """\
Times this code against its peers, in turns, by processor and wall time, and compares the results. A ratio is the
peer's time over ours (ours over the peer's if the target is an upper bound): the median over rounds, with the smallest
and the largest. Warm-up and compile time are kept apart. A peer that is not installed is named and skipped; pip install
'rela-cli[bench]' adds kornia."""


def parser() -> Parser:
    """The command line of `rela bench`."""
    made = Parser("bench", DESCRIPTION, ["rela bench --list", "rela bench augment knn --rounds 3"])
    which = f"{', '.join(BENCH_ROWS)} or all (default: all but distill)"
    made.add("rows", nargs="*", metavar="ROW", help=which, offers=lambda: BENCH_ROWS)
    peer, only = Choice("--peer", PEERS), f"only this peer: {', '.join(PEERS)}"
    made.add_argument("--peer", action="append", default=[], type=peer, metavar="NAME", help=only)
    rounds, turns = WholeNumber("--rounds"), "how often each takes its turn (default: 7)"
    made.add_argument("--rounds", default=7, type=rounds, metavar="N", help=turns)
    made.add_argument("--data", type=Path, metavar="FOLDER", help="train/<class>/* and test/<class>/*, 32 px JPEGs")
    device, which = Choice("--device", ("all", "cpu", "cuda")), "which rows (default: all that can run)"
    made.add_argument("--device", default="all", type=device, metavar="all|cpu|cuda", help=which)
    size, tiny = Choice("--size", ("full", "tiny")), "tiny shows that a row works; its figures mean nothing"
    made.add_argument("--size", default="full", type=size, metavar="full|tiny", help=tiny)
    peer_python = "for distill: the python of an environment that has it"
    made.add_argument("--lightly-train", type=Path, metavar="PYTHON", help=peer_python)
    made.add_argument("--json", type=Path, metavar="FILE", help="write rows, versions and load there, after each row")
    made.add_argument("--markdown", action="store_true", help="end with the table of docs/performance.md")
    made.add_argument("--list", action="store_true", help="list rows and peers, and which of them are installed")
    return made


def main(argv: Sequence[str]) -> int:
    """Race the rows that are asked for; 0 whether or not they reach their targets.

    Raises:
        ConfigError: no such row, peer or option. MissingError: --data is no folder, --lightly-train no file.
    """
    asked = parser().read(argv)
    rows = chosen_rows(asked.rows)
    if asked.list:
        print(listing())
        return 0
    if asked.data and not asked.data.is_dir():
        raise MissingError(f"--data {asked.data} is not a folder (looked at {asked.data.absolute()})")
    if asked.lightly_train and not asked.lightly_train.is_file():
        raise MissingError(f"--lightly-train {asked.lightly_train} is not a file; give the python of its environment")
    if asked.json and not asked.json.absolute().parent.is_dir():
        raise MissingError(f"--json {asked.json}: there is no folder {asked.json.absolute().parent}")
    with tempfile.TemporaryDirectory(prefix="rela-bench-") as folder:
        devices = ("cpu", "cuda") if asked.device == "all" else (asked.device,)
        is_tiny, peers = asked.size == "tiny", tuple(asked.peer)
        bench = Bench(Path(folder), asked.rounds, peers, asked.data, is_tiny, devices, asked.lightly_train)
        return run_rows(bench, rows, asked.json, asked.markdown)


def run_rows(bench: Bench, rows: Sequence[str], path: Path | None, as_markdown: bool) -> int:
    """Row by row, each line printed when it is done; --json is whole after each of them."""
    scores: list[BenchRow] = []
    begin = machine_load()
    for name in rows:
        if "cpu" not in bench.devices and not BENCH_ROWS[name].gpu:
            continue  # a row of the CPU alone
        for score in import_module(f"rela_cli.commands.bench.{name}").run(bench):
            scores.append(score)
            print(row_line(score), flush=True)
            if path:
                load = {"begin": begin, "end": machine_load()}
                write_json(path, content(scores, bench.skipped, all_versions(), load))
    for note in bench.skipped:
        print(f"{note['name']:<10} {note['peer']} skipped: {note['why']}", file=sys.stderr)
    if as_markdown:
        print(markdown_table(scores, all_versions(), {"begin": begin, "end": machine_load()}))
    return 0


def chosen_rows(names: Sequence[str]) -> tuple[str, ...]:
    """Rows in the registry's order; where none is named, or all, those that do not train for long.

    Raises:
        ConfigError: there is no such row. An unknown option comes first: its value would be taken for a row.
    """
    check = Choice("ROW", (*BENCH_ROWS, "all"))
    names = [check(name) for name in names]
    is_all = not names or "all" in names
    return tuple(name for name, row in BENCH_ROWS.items() if name in names or (is_all and not row.is_long))


def listing() -> str:
    """Rows with their peers; of peers that are not here what is missing."""
    lines = []
    for name, row in BENCH_ROWS.items():
        peers = [peer + (f" (needs {package})" if (package := missing_package(peer)) else "") for peer in row.peers]
        lines.append(f"{name:<10} {row.does}\n{'':<10} against {', '.join(peers)}")
        if row.gpu:
            lines.append(f"{'':<10} with a GPU: {row.gpu}")
    return "\n".join(lines)
