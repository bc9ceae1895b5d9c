"""Extraction on a GPU, without one: every family of priors, no tensor on the wrong device, one wait for each block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.priors.base import Preprocess, Prior
from rela_cli.stages.extract import run_prior
from rela_cli.weights.locate import located
from tests.factories import config, pixels, stats_of
from tests.fake_cuda import GPU, counted, fake_cuda

IMAGES = pixels(4, 32)
BLOCK = 8
FAMILIES: dict[str, tuple[str, ...]] = {
    "random": ("prior=random", "prior.width=4"),
    "patches": ("prior=patches", "prior.patches=8"),
    "embedded": ("prior=embedded",),
    "random_learner": ("prior=random_learner",),
    "torchvision": ("prior=torchvision", "prior.model=squeezenet1_1", "prior.weights=random"),
    "timm": ("prior=timm", "prior.model=test_vit", "prior.weights=random", "prior.image_size=32"),
    "open_clip": ("prior=open_clip", "prior.model=ViT-B-32", "prior.tag=openai", "prior.weights=random"),
    "exported": ("prior=exported", "prior.weights={folder}/net.pt2", "prior.trust=true", "prior.image_size=32"),
    "checkpoint": ("prior=checkpoint", "prior.model=resnet18", "prior.stem=cifar", "prior.weights={folder}/net.pth"),
}


class Tokens(nn.Module):
    """Makes a tensor on the device of its images, which an export keeps as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, 8, 8, 8), nn.Embedding(16, 8)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return (tokens + self.place(torch.arange(tokens.shape[1], device=images.device))).mean(1)


def written(name: str, folder: Path) -> None:
    """The file that a family needs."""
    if name == "exported":
        sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        program = torch.export.export(Tokens().eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=sizes)
        torch.export.save(program, folder / "net.pt2")
    if name == "checkpoint":
        from torchvision.models import resnet18

        network = resnet18()
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        torch.save(network.state_dict(), folder / "net.pth")


@pytest.fixture(params=FAMILIES)
def prior(request: pytest.FixtureRequest, tmp_path: Path) -> Prior:
    written(request.param, tmp_path)
    words = [word.format(folder=tmp_path) for word in FAMILIES[request.param]]
    made: Prior = instantiate(located(config(*words).prior), data=stats_of(IMAGES), allow=())
    made.fit(IMAGES)
    return made.eval()


def waits_of(prior: Prior, blocks: int) -> list[str]:
    """Where the host waits while a prior looks at some blocks."""
    images = torch.zeros(blocks * BLOCK, 3, 32, 32, dtype=torch.uint8)
    found = counted(lambda: list(run_prior(prior, images, 32, BLOCK, GPU, "images")), truth=True)
    assert found.total > 10 * blocks
    return found.waits


def test_every_family_works_on_a_gpu_and_waits_once_for_each_block(prior: Prior) -> None:
    with fake_cuda():
        prior.to(GPU).to(memory_format=torch.channels_last)
        waits_of(prior, 1)  # constants of its own are made with the first block
        assert len(waits_of(prior, 3)) == 3


@pytest.fixture
def small() -> Prior:
    made: Prior = instantiate(located(config(*FAMILIES["random"]).prior), data=stats_of(IMAGES), allow=())
    return made.eval()


def test_constants_that_are_made_for_each_block_are_found(small: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    def anew(self: Preprocess, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (self.mean, self.std))

    monkeypatch.setattr(Preprocess, "constants", anew)
    with fake_cuda():
        small.to(GPU)
        assert len(waits_of(small, 3)) == 9


def test_weights_that_are_left_on_the_cpu_are_found(small: Prior) -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        waits_of(small, 1)


FAULTS: dict[str, Callable[[Tensor], object]] = {
    "number": lambda x: x.sum().item(),
    "truth": lambda x: bool((x > 0).any()),
    "copy": lambda x: x.cpu(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wait_that_is_put_back_is_found(small: Prior, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Preprocess.__call__
    monkeypatch.setattr(Preprocess, "__call__", lambda self, x: (FAULTS[fault](x), forward(self, x))[1])
    with fake_cuda():
        small.to(GPU)
        waits_of(small, 1)
        assert len(waits_of(small, 3)) == 6
