"""Steps of a fine-tuning and of a segmentation head on a GPU, without one: no wait, nothing on the wrong device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.data.batches.cache import Split
from rela_cli.evaluation import dense
from rela_cli.stages.finetune import Classifier, Data, Finetuning
from rela_cli.weights.locate import located
from tests.factories import config, pixels, stats_of
from tests.fake_cuda import GPU, counted, fake_gpu_with_values_of, gpu_code_on_cpu, with_values

BATCH, CLASSES = 8, 3
STATS = stats_of(pixels(8, 16))


def filled(self: Tensor) -> None:
    """Stands for the backward pass, which needs a driver."""
    for weight in WEIGHTS:
        weight.grad = torch.empty_like(weight)


WEIGHTS: list[nn.Parameter] = []


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Tensor, "backward", filled)
    with fake_gpu_with_values_of((dense, "permutation")):
        yield


def finetuning() -> Finetuning:
    """One whose parts are there, on a GPU that is not."""
    made = config("prior=random", "prior.width=4", "probe.finetune_steps=4")
    prior = with_values(lambda: instantiate(located(made.prior), data=STATS, allow=()))()
    images = torch.zeros(2 * BATCH, 3, 16, 16, dtype=torch.uint8)
    loop = Finetuning.__new__(Finetuning)
    labels = torch.zeros(2 * BATCH, dtype=torch.long)
    loop.config, loop.settings, loop.device, loop.stats = made, made.probe, GPU, STATS
    loop.data = Data(Split(images, labels), Split(images, labels), torch.arange(2 * BATCH), CLASSES, True)
    loop.labels, loop.preprocess = labels.to(GPU), prior.preprocess
    loop.drawing = loop.light_view()
    loop.network = Classifier(prior, CLASSES, 0).to(GPU)  # type: ignore[attr-defined]
    WEIGHTS[:] = loop.network.parameters()  # type: ignore[attr-defined]
    return loop


def stepped(loop: Any, step: int) -> list[str]:
    """The waits of a step."""
    optimizer = torch.optim.AdamW([{"params": WEIGHTS, "rate": 1e-3}], lr=1e-3, fused=True)
    rows, images = torch.arange(BATCH, device=GPU), torch.zeros(BATCH, 3, 16, 16, dtype=torch.uint8, device=GPU)
    return counted(lambda: loop.step(loop.network, optimizer, 1.0, rows, images, step), truth=True).waits


def test_a_step_of_a_fine_tuning_waits_for_nothing_but_the_check_of_every_50(fake_gpu: None) -> None:
    loop = finetuning()
    stepped(loop, 1)  # the grids of the crop are made at the first
    assert stepped(loop, 2) == []
    assert len(stepped(loop, 50)) == 1


def test_views_that_are_built_for_each_step_are_found(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = finetuning()
    monkeypatch.setattr(loop, "augment", lambda pixels, rows, step: loop.light_view()(pixels, rows, step))
    stepped(loop, 1)
    assert len(stepped(loop, 2)) >= 7


def fitted(steps: int, masks_on: torch.device) -> list[str]:
    """The waits of some steps of a head on maps that are kept on the GPU."""
    count, width, side = 4 * BATCH, 6, 4
    kept = torch.zeros(count, width, side, side, dtype=torch.float16, device=GPU)
    heads = [dense.head(name, width, CLASSES).to(GPU) for name in dense.HEADS]
    WEIGHTS[:] = [weight for head in heads for weight in head.parameters()]
    masks = torch.zeros(count, 16, 16, dtype=torch.uint8, device=masks_on)
    maps = lambda rows: kept[rows].float()  # noqa: E731
    return counted(lambda: dense.fit(heads, (1e-3, 1e-2), maps, masks, torch.arange(count), steps, BATCH), 1.0).waits


def test_a_step_of_a_segmentation_head_waits_for_nothing(fake_gpu: None) -> None:
    assert fitted(2, GPU) == fitted(6, GPU) == []


def test_the_loss_over_rows_is_that_over_images() -> None:
    random = torch.Generator().manual_seed(1)
    found = torch.randn(2, CLASSES, 5, 5, generator=random, dtype=torch.float64)
    truth = torch.randint(0, CLASSES, (2, 5, 5), generator=random)
    truth[0, 0] = dense.IGNORED
    ours = dense.mean_loss(found, truth)
    with gpu_code_on_cpu():
        assert dense.mean_loss(found, truth).item() == pytest.approx(ours.item(), abs=1e-12)


def test_masks_that_lie_elsewhere_are_found(fake_gpu: None) -> None:
    assert len(fitted(6, torch.device("cpu"))) > len(fitted(2, torch.device("cpu")))
