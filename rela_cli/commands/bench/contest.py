"""From a race to rows of a table: who was compared with whom, by which clock, and whether the figure was reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rela_cli.commands.bench.registry import missing_package
from rela_cli.commands.bench.timing import Contestant, Spread, Timings, race, ratios, seconds
from rela_cli.errors import first_line
from rela_cli.machine.memory import STATUS

Results = Mapping[str, Any]  # what each contestant's last call gave


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer's. bound "least": the peer's time over ours; "most": our time over the peer's."""

    ours: str
    peer: str
    work: str
    target: float | None = None
    by: str = "cpu"  # which clock: cpu, or wall where several processes or cores are the point
    bound: str = "least"
    unit: str = "x"  # of the target: x (the ratio), or s (our seconds)


@dataclass(frozen=True)
class BenchRow:
    """A row of the table; `value` is what the target is about, in `unit`."""

    name: str
    work: str
    peer: str
    ratio: Spread | None
    target: float | None
    reached: bool | None
    accuracy: str
    value: Spread
    unit: str = "x"
    bound: str = "least"
    by: str = "cpu"
    seconds: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Bench:
    """What the command line asks for, and what the rows need of it."""

    folder: Path  # for temporary files
    rounds: int = 7
    peers: tuple[str, ...] = ()  # none: all
    data: Path | None = None
    tiny: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    lightly_train: Path | None = None  # the python of an environment that has it
    skipped: list[dict[str, str]] = field(default_factory=list)

    def size(self, full: int, tiny: int) -> int:
        """How much work; tiny sizes show that a row runs, and measure nothing."""
        return tiny if self.tiny else full

    def skip(self, name: str, peer: str, why: str) -> None:
        note = {"name": name, "peer": peer, "why": why}
        if note not in self.skipped:
            self.skipped.append(note)

    def has_gpu(self, name: str) -> bool:
        """Whether rows on a GPU are asked for and can be measured; where there is none, that is noted."""
        import torch

        if "cuda" in self.devices and not torch.cuda.is_available():
            self.skip(name, "GPU rows", "torch sees no GPU here")
        return "cuda" in self.devices and torch.cuda.is_available()

    def sees_memory(self, name: str) -> bool:
        """Whether this system tells how much memory a process holds; where it does not, that is noted."""
        if not STATUS.exists():
            self.skip(name, "memory", "no /proc here that tells anonymous memory")
        return STATUS.exists()

    def wants(self, name: str, peer: str) -> bool:
        """Whether a peer is asked for and here; one that is not here is noted."""
        if self.peers and peer not in self.peers:
            return False
        if package := missing_package(peer):
            self.skip(name, peer, f"{package} is not installed: pip install 'rela-cli[bench]'")
        return not package

    def scores(
        self,
        name: str,
        contestants: Sequence[Contestant],
        comparisons: Sequence[Comparison],
        accuracy: Callable[[Results, str], str] = lambda results, peer: "",
    ) -> Iterator[BenchRow]:
        """Race those that are wanted, and compare; `accuracy` says what came out, ours and a peer's."""
        pairs = [pair for pair in comparisons if self.wants(name, pair.peer)]
        needed = {side for pair in pairs for side in (pair.ours, pair.peer)}
        drop = lambda who, error: self.skip(name, who.name, f"{type(error).__name__}: {first_line(error)}")  # noqa: E731
        records = race([who for who in contestants if who.name in needed], self.rounds, drop)
        results = {who: record.result for who, record in records.items()}
        for pair in pairs:
            if pair.ours in records and pair.peer in records:
                yield compared_row(name, pair, records, accuracy(results, pair.peer))


def compared_row(name: str, pair: Comparison, records: Mapping[str, Timings], accuracy: str) -> BenchRow:
    """One comparison as a row."""
    ours, peer = records[pair.ours], records[pair.peer]
    ratio = ratios(peer, ours, pair.by) if pair.bound == "least" else ratios(ours, peer, pair.by)
    value = ratio if pair.unit == "x" else seconds(ours, pair.by)
    times = {side: times_of(record) for side, record in (("ours", ours), ("peer", peer))}
    return BenchRow(
        *(name, pair.work, pair.peer, ratio, pair.target, reached(value, pair.target, pair.bound), accuracy, value),
        *(pair.unit, pair.bound, pair.by, times),
    )


def measured_row(
    name: str, work: str, peer: str, ratio: Spread | None, value: Spread, target: float | None, unit: str, accuracy: str
) -> BenchRow:
    """A row whose figure is not one of time: memory, or images a second."""
    bound = "least" if unit.endswith("/s") else "most"
    return BenchRow(
        name, work, peer, ratio, target, reached(value, target, bound), accuracy, value, unit, bound, by="wall"
    )


def reached(value: Spread, target: float | None, bound: str) -> bool | None:
    """Whether the median is on the right side of the target; None where there is none."""
    if target is None:
        return None
    return value.median >= target if bound == "least" else value.median <= target


def times_of(record: Timings) -> dict[str, Any]:
    """Medians by both clocks, and the warm-up, apart."""
    clocks = {by: seconds(record, by).median for by in ("cpu", "wall")}
    return {**clocks, "warm_up_wall": record.warm_up.wall}
