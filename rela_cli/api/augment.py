"""`rela.Augment`: the views of phase 1 for any loop, made on the device that the images are on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import yaml
from torch import Tensor

from rela_cli.api.efficient import EfficientDataset
from rela_cli.config.schema import CONF_DIR, View
from rela_cli.data.batches import views
from rela_cli.data.batches.boxes import CachedViews


class Augment:
    """Light views of batches of images, the very ones that `rela train` shows a learner in phase 1 (matching.view).

    With `cached` the light views are those that the prior has looked at (data.views of each image, by
    `rela convert extract.views=K`), cut and mirrored as it saw them; `Matching` with `cached` takes their own targets.

    Crop, flip (unless the dataset says flip=false), colour jitter and grey, then normalised by the dataset's mean and
    deviation. Each sample has random numbers of its own, a function of (seed, epoch, sample, view): workers, ranks,
    batches and restarts change nothing. `settings` are keys of matching.view: crop_scale, jitter_p, gray_p and so on.

    >>> data = open_folder("efficient")
    >>> views = Augment(data, seed=0)
    >>> images = torch.stack([data.images()[i][0] for i in range(4)])
    >>> one, other = views(images, [0, 1, 2, 3], epoch=0)
    >>> one.shape, one.dtype, torch.equal(one, other)
    (torch.Size([4, 3, 8, 8]), torch.float32, False)
    """

    def __init__(
        self, data: EfficientDataset, count: int = 2, seed: int = 0, cached: bool = False, **settings: Any
    ) -> None:
        """`count` views of each image.

        Raises:
            ValueError: fewer than one view, or a key that a view does not have. ConfigError: `cached`, and there are no
            light views.
        """
        if count < 1:
            raise ValueError(f"count={count} must be at least 1")
        self.view, self.size, self.count, self.seed = view_of(settings), data.image_size, count, seed
        self.mean, self.std, self.flip = torch.tensor(data.mean), torch.tensor(data.std), data.dataset.flip
        self.cached = CachedViews(data.boxes, data.boxes[:0], seed) if cached else None
        self.made: dict[torch.device, views.Views] = {}
        self.samples = len(data)

    def __call__(self, images: Tensor, indices: Tensor | list[int], epoch: int) -> list[Tensor]:
        """(B, 3, H, W) uint8 and the samples' numbers (B,) -> `count` views, (B, 3, S, S) float32, on their device.

        Raises:
            ValueError: images that are not uint8, or not as many as numbers.
        """
        rows = torch.as_tensor(indices, device=images.device)
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(rows):
            found = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            raise ValueError(f"images must be uint8 (B, 3, H, W) with B numbers; these are {found} with {len(rows)}")
        if images.device not in self.made:
            self.made[images.device] = self.on(images.device)
        places = self.cached.places(rows, epoch, self.count) if self.cached else ()
        return self.made[images.device](images, rows, epoch, places)

    def on(self, device: torch.device) -> views.Views:
        """What draws them on a device."""
        mean, std = self.mean.to(device), self.std.to(device)
        kinds = [views.Augment(self.view, self.size, mean, std, self.seed, i, self.flip) for i in range(self.count)]
        return views.Views(kinds, self.samples)


def view_of(settings: dict[str, Any]) -> View:
    """matching.view as its yaml has it, with what was asked for."""
    tree = yaml.safe_load((CONF_DIR / "matching" / "cosine.yaml").read_text(encoding="utf-8"))["view"]
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in {**tree, **settings}.items()}
    known = [field.name for field in fields(View)]
    if odd := [key for key in settings if key not in known]:
        raise ValueError(f"a view has no setting {', '.join(odd)}; it has {', '.join(known)}")
    return View(**own)
