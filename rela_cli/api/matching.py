"""`rela.Matching`: phase 1 of ReLA in any loop, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, distributed, nn

from rela_cli import matching, switch
from rela_cli.api.efficient import EfficientDataset
from rela_cli.api.subset import is_distributed
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import CONF_DIR, Part
from rela_cli.data.batches.boxes import CachedViews
from rela_cli.learners.build import measured_width
from rela_cli.numerics.randomness import torch_seed
from rela_cli.transports.base import matched_width

SWITCHES = ("adaptive", "fixed", "never")


class Matching(nn.Module):
    """Pulls what a network makes of an image to the image's target, through a linear layer (ReLA-F in the paper).

    `learner` is the network, (B, 3, S, S) -> (B, D), or D itself; `data` an efficient dataset or targets (N, k).
    A step is one call of `loss`; `done` says whether the next step is one of phase 2. Give the parameters of this
    module to the optimizer, too, and let both networks stand in one module where gradients are averaged over ranks.

    `switch` adaptive ends matching when its loss has settled; with `total_steps` its time constants are shares of the
    run, as in `rela train`, and without they are the paper's, made for thousands of steps. fixed ends it after
    `at=0.5` of `total_steps`, never does not. Other settings of a switch are keywords: threshold, constants, at.

    >>> matching = Matching(32, torch.randn(100, 16), switch="fixed", total_steps=4, at=0.5)
    >>> [(matching.done, matching.loss(torch.randn(8, 32), range(8)).item() > 0) for _ in range(2)]
    [(False, True), (False, True)]
    >>> matching.done
    True
    """

    def __init__(
        self,
        learner: nn.Module | int,
        data: EfficientDataset | Tensor,
        switch: str = "adaptive",
        total_steps: int | None = None,
        transfer: str = "trained",
        seed: int = 0,
        cached: bool = False,
        **settings: Any,
    ) -> None:
        """`transfer` "frozen" keeps the layer at its random initialisation, which `seed` decides.

        With `cached`, and the same `seed` as `Augment`, each view is matched to its own target.

        Raises:
            ValueError: an unknown switch, one that needs `total_steps`, a learner that gives no (B, D); `cached`, and
            targets alone. ConfigError: `cached`, and there are no light views.
        """
        super().__init__()
        if transfer not in ("trained", "frozen"):
            raise ValueError(f"transfer={transfer!r} must be trained or frozen")
        width = learner if isinstance(learner, int) else width_by_image(learner, data)
        self.data = data
        if cached and isinstance(data, Tensor):
            raise ValueError("cached=True needs an efficient dataset with light views, not targets alone")
        self.cached = CachedViews(data.boxes, data.boxes[:0], seed) if cached and not isinstance(data, Tensor) else None
        self.columns = target_width(width, data)
        with torch_seed(seed, "init", "matching"):
            self.layer = matching.Matching(width, self.columns, transfer)
        self.switch = built_switch(switch, total_steps, settings)
        self.is_asked = False  # whether the switch has been told that a step begins

    def loss(
        self, features: Tensor | Sequence[Tensor], indices: Tensor | Sequence[int], epoch: int | None = None
    ) -> Tensor:
        """1 - cosine, averaged over samples and views: features (B, D) of one view, or of several, -> scalar.

        `indices` (B,) are the samples' numbers in the dataset. Several ranks show the switch the mean of their losses.
        With `cached` say the `epoch`, too, which `Augment` was given: it says which views these are.

        Raises:
            ValueError: `cached`, and no epoch.
        """
        views = [features] if isinstance(features, Tensor) else list(features)
        device = views[0].device
        targets: Tensor | list[Tensor]
        if self.cached is None:
            targets = self.targets(indices).to(device)
        else:
            targets = [target.to(device) for target in self.targets_of_views(indices, epoch, len(views))]
        self.begin_step()
        loss: Tensor = self.layer(views, targets)
        self.switch.observe(mean_over_ranks(loss.detach()).to(self.switch.state.device))
        self.is_asked = False
        return loss

    forward = loss

    @property
    def done(self) -> bool:
        """Whether matching is over: the next step is one of phase 2. It waits for the device."""
        self.begin_step()
        return self.switch.should_leave()

    def begin_step(self) -> None:
        """Tell the switch, once, that a step begins."""
        if not self.is_asked:
            self.switch.check()
            self.is_asked = True

    def targets(self, indices: Tensor | Sequence[int]) -> Tensor:
        """(B, k) float32: as many components as the learner is matched to."""
        if isinstance(self.data, EfficientDataset):
            return self.data[indices][:, : self.columns]
        rows = torch.as_tensor(indices, device=self.data.device)
        return self.data[rows].float()

    def targets_of_views(self, indices: Tensor | Sequence[int], epoch: int | None, count: int) -> list[Tensor]:
        """Of each of `count` views (B, k) float32: what the prior made of that very view."""
        if epoch is None or self.cached is None or isinstance(self.data, Tensor):
            raise ValueError("cached views: say loss(features, indices, epoch), with the epoch that Augment was given")
        rows = torch.as_tensor(indices).cpu()
        chosen = self.cached.chosen(rows, epoch, count)
        return [self.data.targets_of_views(rows, which)[:, : self.columns] for which in chosen]

    def get_extra_state(self) -> Tensor:
        """The switch's state, (6,) float64: it stands in `state_dict`."""
        asked = torch.tensor([float(self.is_asked)], dtype=torch.float64)
        return torch.cat((self.switch.state.cpu(), asked))

    def set_extra_state(self, state: Tensor) -> None:
        self.switch.state, self.is_asked = state[:5].to(self.switch.state.device), bool(state[5])


def built_switch(name: str, total_steps: int | None, settings: dict[str, Any]) -> switch.Switch:
    """A switch from its yaml and what was asked for."""
    if name not in SWITCHES:
        raise ValueError(f"switch={name!r} must be one of {', '.join(SWITCHES)}")
    tree = yaml.safe_load((CONF_DIR / "switch" / f"{name}.yaml").read_text(encoding="utf-8"))
    if odd := [key for key in settings if key not in tree or key in ("name", "_target_")]:
        raise ValueError(f"switch={name!r} has no setting {', '.join(odd)}")
    if total_steps is None and name == "adaptive":
        tree["constants"] = "reference"
    part = Part.from_tree(tree | settings)
    if total_steps is None and (name == "fixed" or part.options.get("constants") == "share"):
        raise ValueError(f"switch={name!r} needs total_steps=, the length of the run in steps")
    made: switch.Switch = instantiate(part, total_steps=total_steps or 0, device=torch.device("cpu"))
    return made


def width_by_image(learner: nn.Module, data: EfficientDataset | Tensor) -> int:
    """D of a network, by one image of nothing; it is left as it was."""
    if isinstance(data, Tensor):
        raise ValueError("with targets alone say how wide the network's features are: Matching(512, targets)")
    return measured_width(learner, data.image_size, next((p.dtype for p in learner.parameters()), None))


def target_width(width: int, data: EfficientDataset | Tensor) -> int:
    """k that a learner of `width` features is matched to: the first ones, where those are the best."""
    if isinstance(data, Tensor):
        return int(data.shape[1])
    return matched_width(width, data.width, data.ordered, data.per_feature)


def mean_over_ranks(loss: Tensor) -> Tensor:
    """The mean of each rank's value."""
    if not is_distributed():
        return loss
    total = loss.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
