"""`rela.train` and `rela.table`: runs, and what they came to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.config.compose import compose
from rela_cli.errors import ConfigError
from rela_cli.report.results.collect import collect
from rela_cli.store.files import read_whole

if TYPE_CHECKING:
    from torch import nn

SETTING_NAMES = (
    "dataset",
    "prior",
    "transport",
    "learner",
    "method",
    "budget",
    "seed",
    "epochs",
    "train_samples",
    "steps",
)
BASELINES = ("untrained", "prior_alone")


class TrainedRun:
    """A finished run: its folder and its numbers."""

    def __init__(self, folder: Path, status: str) -> None:
        self.folder, self.status = folder, status

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {100 * top1:.1f}" for name, top1 in self.numbers.items())
        return f"TrainedRun({str(self.folder)!r}, {numbers or 'not probed'})"

    @cached_property
    def result(self) -> dict[str, Any]:
        """All of result.json: settings, numbers, costs."""
        return read_whole(self.folder / "result.json")

    @property
    def numbers(self) -> dict[str, float]:
        """top1 in [0, 1] by protocol."""
        return {name: float(number["top1"]) for name, number in self.result["probe"].items()}

    def backbone(self, network: str = "online") -> nn.Module:
        """The trained network, in eval mode: (B, 3, S, S) float, normalised -> (B, D)."""
        from rela_cli.learners.build import load_backbone

        return load_backbone(self.folder, network)


def train(overrides: Sequence[str] = ()) -> TrainedRun:
    """What `rela train` does with these overrides; a run that is finished is found. It prints what the command prints.

    >>> run = train(["learner.width=4", "epochs=1", "prior=none", "probe.protocols=[knn]"])  # doctest: +ELLIPSIS
    digits-none-...
    >>> run.result["steps"], sorted(run.numbers)
    (22, ['knn'])

    Raises:
        RelaError: whatever the command would say.
    """
    from rela_cli.pipeline import pipeline

    config = compose(overrides)
    if config.runtime.devices > 1:
        raise ConfigError("runtime.devices: several processes are started by the command line, `rela train`")
    outcome = pipeline.run(config, command=shlex.join(["rela", "train", *overrides]))
    if outcome.folder is None:
        raise ConfigError("runtime.dry_run=true makes no run")
    return TrainedRun(outcome.folder, outcome.status)


class Table(list[dict[str, Any]]):
    """Rows as dicts."""

    def to_pandas(self) -> Any:
        """A pandas DataFrame.

        Raises:
            ImportError: pandas is not installed, with the line that installs it.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(list(self))


def table(*paths: str | Path) -> Table:
    """One row for each number of the runs at `paths` (default: outputs): top1 in [0, 1], seconds and FLOPs in all.

    >>> run = train(["learner.width=4", "epochs=1", "prior=none", "probe.protocols=[knn]"])  # doctest: +ELLIPSIS
    digits-none-...
    >>> rows = table("outputs")
    >>> rows[0]["dataset"], rows[0]["protocol"], 0 <= rows[0]["top1"] <= 1
    ('digits', 'knn', True)

    Raises:
        MissingError: no result there.
    """
    results = collect([Path(path) for path in paths or ("outputs",)])
    return Table(row for result in results for row in result_rows(result))


def result_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's numbers, one a protocol, with what they are compared with and what the run cost."""
    own = {name: result.get(name) for name in SETTING_NAMES}
    own |= {key: value for key, value in result.get("called", {}).items() if key in SETTING_NAMES}
    cost = {name: sum(result.get(name, {}).values()) for name in ("seconds", "flops")}
    baselines = result.get("baselines") or {}
    rows = []
    for key, number in (result.get("probe") or {}).items():
        protocol, _, network = key.partition("@")
        others = {name: ((baselines.get(name) or {}).get(protocol) or {}).get("top1") for name in BASELINES}
        rows.append({**own, "protocol": protocol, "network": network or "online", "top1": number["top1"], **others,
                     **cost, "run": result["path"]})  # fmt: skip
    return rows
