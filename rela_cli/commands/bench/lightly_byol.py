"""BYOL as lightly's example trains it: its heads, its loss, its views by torchvision in loader workers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rela_cli.commands.bench.paper import OneView
from rela_cli.commands.bench.train import loader
from rela_cli.learners.resnet import resnet18
from rela_cli.numerics.randomness import torch_seed

HIDDEN, OUT, EMA = 1024, 256, 0.996


class LightlyByol:
    """Two passes of each network, bf16 by autocast on a GPU; views for 32 px, so without blur."""

    def __init__(self, pixels: Tensor, batch: int, width: int, device: str, workers: int) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

        first, second = (
            kind(input_size=pixels.shape[-1], gaussian_blur=0.0) for kind in (BYOLView1Transform, BYOLView2Transform)
        )
        self.loader = loader(OneView(pixels, BYOLTransform(first, second)), batch, workers, device)
        self.device, features = device, 8 * width
        with torch_seed(0, "bench"):
            self.online = nn.Sequential(resnet18("cifar", width), BYOLProjectionHead(features, HIDDEN, OUT)).to(device)
            self.predictor = BYOLPredictionHead(OUT, HIDDEN, OUT).to(device)
        self.target, self.criterion = copy.deepcopy(self.online).requires_grad_(False), NegativeCosineSimilarity()
        self.optimizer = torch.optim.SGD([*self.online.parameters(), *self.predictor.parameters()], lr=0.06)

    def epoch(self) -> float:
        """One pass; the mean loss, which is read once, as lightly's example does."""
        total = torch.zeros((), device=self.device)
        for one, other in self.loader:
            total += self.step(one.to(self.device, non_blocking=True), other.to(self.device, non_blocking=True))
        return float(total) / len(self.loader)

    def step(self, one: Tensor, other: Tensor) -> Tensor:
        """One update, and the running average."""
        from lightly.models.utils import update_momentum

        update_momentum(self.online, self.target, m=EMA)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            guesses = [self.predictor(self.online(view)) for view in (one, other)]
            with torch.no_grad():
                aims = [self.target(view) for view in (one, other)]
            loss = (self.criterion(guesses[0], aims[1]) + self.criterion(guesses[1], aims[0])) / 2
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()  # type: ignore[no-any-return]
