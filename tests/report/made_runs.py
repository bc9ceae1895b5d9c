"""Runs as a table finds them: results written by hand, and how to read a table back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rela_cli.commands import table
from rela_cli.store.files import write_json

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "digits", "target": "rela_cli.data.Digits", "limit": None},
    "learner": {"name": "resnet18", "target": "rela_cli.learners.resnet18", "width": 8},
    "method": {"name": "simclr", "target": "rela_cli.methods.SimCLR", "view1": {"crop_scale": [0.08, 1.0]}},
    "optimizer": {"name": "adamw", "lr": 0.001},
    "epochs": 30,
    "batch_size": 64,
    "version": 1,
}


RELA_SETTINGS: dict[str, Any] = {
    "transport": {"name": "whitening", "max_dim": 64},
    "matching": {"name": "cosine", "transfer": "trained", "view": {"flip_p": 0.5}},
    "switch": {"name": "never"},
}


Make = Callable[..., Path]


Record = dict[str, Any]


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set; a group's name alone makes it a group without options."""
    settings = copy.deepcopy(settings)
    for key, value in changes.items():
        *groups, last = key.split(".")
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = {"name": value} if isinstance(inner.get(last), dict) else value
    return settings


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes one result.json below tmp_path/outputs/runs; returns its run folder."""
    count = iter(range(1000))

    def write(
        top1: float | dict[str, float] = 0.8,
        prior: str = "none",
        budget: float = 0.5,
        seed: int = 0,
        changes: dict[str, Any] | None = None,
        untrained: float | None = None,
        prior_alone: float | None = None,
        **fields: Any,
    ) -> Path:
        rela = {} if prior == "none" else {"prior": {"name": prior, "width": 64}, **RELA_SETTINGS}
        settings = changed({**SETTINGS, **rela, "budget": budget, "seed": seed}, changes or {})
        values = top1 if isinstance(top1, dict) else {"lbfgs": top1}
        result = {
            "status": "finished",
            **{group: settings[group]["name"] for group in ("dataset", "learner", "method")},
            "prior": prior,
            "transport": None if prior == "none" else "whitening",
            "budget": budget,
            "seed": seed,
            "probe": {k: {"top1": v, "network": "target" if "@target" in k else "online"} for k, v in values.items()},
            "baselines": {
                "untrained": untrained and {"lbfgs": {"top1": untrained, "network": "online"}},
                "prior_alone": prior_alone and {"lbfgs": {"top1": prior_alone, "network": "online"}},
            },
            "settings": settings,
            "steps": 330,
            "samples_seen": 21120,
            "switch_step": None,
            "peak_memory_bytes": 512e6,
            "device": "cpu",
        }
        folder = tmp_path / "outputs" / "runs" / f"run{next(count):03}"
        folder.mkdir(parents=True)
        write_json(folder / "result.json", {**result, **fields})
        return folder

    return write


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `rela table` prints for tmp_path/outputs."""
    assert table.main([str(tmp_path / "outputs"), *options]) == 0
    return capsys.readouterr().out


def records(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[Record]:
    found: list[Record] = json.loads(shown(tmp_path, capsys, "--format=json", *options))
    return found


def cell(found: list[Record], **keys: Any) -> Record:
    """The one record that has these values."""
    (one,) = [record for record in found if all(record[k] == v for k, v in keys.items())]
    return one


def markdown_rows(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table, by column."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    head, _, *body = [[field.strip() for field in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in body]


def cost_fields(factor: float = 1.0) -> dict[str, Any]:
    return {
        "seconds": {"extract": 4.0 * factor, "transport": 1.0, "train": 95.0, "probe": 2.0},
        "seconds_now": {"extract": 0.0, "transport": 0.0, "train": 95.0, "probe": 2.0},
        "flops": {"extract": 1.5e9, "transport": 0.5e9, "train": 1.234e12, "probe": 1e6},
    }
