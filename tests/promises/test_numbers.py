"""Row 13 of docs/reliability.md: NaN and Inf, and representations that collapse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rela_cli.errors import NonFiniteError
from rela_cli.evaluation.measures import dimension_std
from rela_cli.methods.simsiam import SimSiam
from rela_cli.training.checkpoint import Checkpoints
from rela_cli.training.trainer import Trainer
from rela_cli.training.watch import COLLAPSED_DEVIATION, SETTLED
from tests.factories import fit, trainer
from tests.promises.harness import FAKE, METHODS, RUN, SWITCH, call, run_folder, small, train, words

Json = dict[str, Any]


def poison(loop: Trainer, step: int) -> Trainer:
    """Its loss is NaN at a step."""
    loss_of = loop.loss_of
    loop.loss_of = lambda *a: loss_of(*a) * (float("nan") if loop.position.step == step else 1)  # type: ignore[method-assign]
    return loop


@pytest.mark.parametrize(("step", "phase"), [(3, 1), (5, 2), (7, 2)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_bad_update_is_not_applied(tmp_path: Path, step: int, phase: int, optimizer: str) -> None:
    make = lambda: small(*words("byol"), *SWITCH, f"optimizer={optimizer}")  # noqa: E731
    loop = poison(make(), step)
    with pytest.raises(NonFiniteError, match=rf"step {step} \(phase {phase}") as error:
        train(tmp_path / "run", loop, every=0)
    order = torch.cat(list(loop.rank_batches((step - 1) // 3)))
    samples = order[(step - 1) % 3 * 16 :][:16].tolist()
    assert error.value.facts == {"step": step, "phase": phase, "epoch": (step - 1) // 3 + 1, "samples": samples}
    found = Checkpoints(tmp_path / "run", 0).latest()
    assert found is not None and found.step == step - 1
    weights = dict(loop.trainee.named_parameters())
    online = {key: value for key, value in weights.items() if value.requires_grad}
    assert all(torch.equal(value, found.state["trainee"][key]) for key, value in online.items())
    assert all(value.isfinite().all() for value in weights.values())


def test_nothing_bad_is_ever_saved(tmp_path: Path) -> None:
    """Where the host looks at the flag every 100 steps only, as on a GPU, it looks before it saves too."""
    loop = poison(small(*words("byol"), *SWITCH, "runtime.read_every_steps=100"), 4)
    with pytest.raises(NonFiniteError):
        train(tmp_path / "run", loop, every=0)
    found = Checkpoints(tmp_path / "run", 0).latest()
    assert found is not None and found.step == 3


def poisoned() -> None:
    loss_of = Trainer.loss_of
    Trainer.loss_of = lambda self, *a: loss_of(self, *a) * (float("nan") if self.position.step == 9 else 1)  # type: ignore


def test_a_real_run_writes_it_down_and_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    words = ("train", *RUN, "checkpoint.every_seconds=0")
    assert call(tmp_path, *words, before=poisoned) == 4
    folder = run_folder(tmp_path)
    manifest: Json = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "step 9 (phase 1, epoch 3, samples " in manifest["reason"]
    bad = manifest["non_finite"]
    assert (bad["step"], bad["phase"], len(bad["samples"])) == (9, 1, 8)
    assert [path.name.split("-")[1] for path in Checkpoints(folder, 0).found()] == ["0000000008", "0000000007"]
    assert call(tmp_path, *words, before=poisoned) == 4, "the same again"
    assert call(tmp_path, *words, "optimizer.lr=1e-4") == 0, "another run, which has nothing to do with it"
    assert call(tmp_path, *words) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest.keys() & {"reason", "non_finite"}) == ("finished", set())


def test_a_rate_that_blows_up(tmp_path: Path) -> None:
    assert call(tmp_path, "train", *RUN, "optimizer=sgd", "optimizer.lr=1e20") == 4
    assert "NaN or Inf in the gradients of step" in (tmp_path / "err").read_text()


# ----------------------------------------------------------------------------------------------------------- collapse

RATE = ("method=simsiam", "method.hidden_dim=8", "method.projection_dim=8", "optimizer.lr=0.02")
LASTING = (*FAKE, "prior=none", *RATE, "batch_size=16", "epochs=20", "runtime.eval_every_epochs=5")  # 80 steps
QUICK = ("probe.protocols=[knn]", "probe.knn_k=5", "probe.baselines=false")


def collapsing() -> None:
    """Two views of an image are to look the same, and nothing keeps two images apart."""

    def forward(self: SimSiam, views: list[torch.Tensor]) -> torch.Tensor:
        one, other = (self.backbone(view) for view in views)
        return (one - other).square().sum(1).mean()

    SimSiam.forward = forward  # type: ignore[assignment, method-assign]


def test_a_collapse_is_said_once_while_it_happens(tmp_path: Path) -> None:
    assert call(tmp_path, "train", *LASTING, *QUICK, before=collapsing) == 0, (tmp_path / "err").read_text()
    error = (tmp_path / "err").read_text()
    assert error.count("the representation has collapsed at step ") == 1
    folder = run_folder(tmp_path)
    assert json.loads((folder / "result.json").read_text())["collapsed"] is True
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    watched = [record for record in records if "deviation" in record]
    assert watched[-1]["deviation"] < COLLAPSED_DEVIATION
    step = int(error.partition("at step ")[2].partition(":")[0])
    assert SETTLED <= step < 80


def test_stop(tmp_path: Path) -> None:
    assert call(tmp_path, "train", *LASTING, *QUICK, "on_collapse=stop", before=collapsing) == 4
    assert "the representation has collapsed at step " in (tmp_path / "err").read_text()
    assert json.loads((run_folder(tmp_path) / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_run_is_not_suspected(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    loop = trainer(*words(method), "epochs=14", "runtime.eval_every_epochs=1", target_dim=None)
    records = fit(loop).records
    assert records[-1]["step"] == 56 > SETTLED
    assert loop.position.collapsed is False
    assert "collapsed" not in capsys.readouterr().err
    assert all(record["deviation"] > 2 * COLLAPSED_DEVIATION for record in records[SETTLED // 4 :])


def test_nobody_looks_before_it_has_settled_or_where_it_is_switched_off() -> None:
    short, blind = trainer("epochs=1", "runtime.eval_every_epochs=1"), trainer()
    fit(short), fit(blind)
    assert short.position.collapsed is None and blind.position.collapsed is None


def test_deviation() -> None:
    """Against its definition, and at both of its ends."""
    features = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    assert dimension_std(features) == pytest.approx(1, abs=0.02)
    assert dimension_std(torch.ones(50, 16)) == pytest.approx(0, abs=1e-6)
    unit = F.normalize(features.double()[:7] + 3, dim=1)
    expected = sum(unit[:, d].var().sqrt().item() for d in range(16)) / 16 * 4
    assert dimension_std(features[:7] + 3) == pytest.approx(expected, rel=1e-4)
