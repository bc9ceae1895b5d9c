"""Dense prediction: what the frozen feature map of a network knows of each pixel, by a linear and by an FCN head.

Maps are made once, without augmentation, and kept in memory in fp16 where all of them take up to KEPT bytes; else they
are made again for each batch, which is said. The rate is chosen on a held-out tenth of the train images.
"""

from __future__ import annotations

import time
from functools import cached_property

import torch
from torch import Tensor, nn

from rela_cli.config.schema import Config
from rela_cli.data.base import Dataset
from rela_cli.data.batches.cache import Split, read_masks, read_split, read_stats
from rela_cli.data.batches.loader import centre, in_blocks, sent
from rela_cli.errors import ConfigError, MissingError, NonFiniteError
from rela_cli.evaluation import dense
from rela_cli.evaluation.representation import gathered
from rela_cli.learners.maps import feature_map, map_shape
from rela_cli.machine.device import count_flops, pick_device, with_room
from rela_cli.machine.progress import Progress
from rela_cli.numerics.randomness import permutation, stream_key, torch_seed
from rela_cli.priors.base import NetworkPrior
from rela_cli.priors.fitting import built_prior
from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts
from rela_cli.store.notices import warn_once
from rela_cli.terminal import as_size

KEPT = 2_000_000_000  # bytes of maps that are kept in memory
BESIDE = 3  # times as many, that a GPU must have free to keep them
HELD_OUT = 10  # one of so many train images chooses the rate


class Segmenting:
    """A frozen network on the images and masks of a dataset. Shapes as in `evaluation.dense`."""

    def __init__(self, config: Config, images: Entry, dataset: Dataset) -> None:
        """Raises ConfigError: the network has no feature map. MissingError: no pixel of the train masks counts."""
        self.config, self.settings = config, config.probe
        self.stats, self.device = read_stats(images), pick_device(config.runtime)
        self.network, self.preprocess = self.frozen()
        self.images = {name: read_split(images, name, dataset) for name in ("train", "test")}
        self.masks = {name: read_masks(images, name) for name in ("train", "test")}
        self.names = dataset.classes or [str(i) for i in range(1 + highest(self.masks["train"]))]
        self.background: int | None = getattr(dataset, "background", None)
        if len(self.names) < 2:
            raise MissingError(
                "segment needs two classes: the train masks have nothing but " + (self.names or ["void"])[0]
            )

    def frozen(self) -> tuple[nn.Module, NetworkPrior]:
        """The network and what it is fed."""
        prior = built_prior(self.config, self.stats)
        if not isinstance(prior, NetworkPrior):
            raise ConfigError(
                f"prior={self.config.prior.name} is no network with a feature map, which segment needs: say one "
                f"that is, such as prior=embedded"
            )
        return prior.backbone.to(self.device).eval(), prior

    # ------------------------------------------------------------------------------------------------------- maps

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """D, h, w of a map."""
        return map_shape(self.network, self.preprocess.preprocess.image_size or self.stats.size)

    @cached_property
    def kept(self) -> dict[str, Tensor] | None:
        """All maps (N, D, h, w) fp16 by split; None where they are too large."""
        count, (width, height, across) = sum(map(len, self.masks.values())), self.shape
        size = 2 * count * width * height * across
        if size > KEPT:
            warn_once(
                f"the feature maps of {count} images would take {as_size(size)}, more than the {as_size(KEPT)} "
                f"that are kept in memory: they are made again for each batch"
            )
            return None
        place = with_room(self.device, BESIDE * size, "the feature maps with what a head needs")
        self.masks = {name: masks.to(place) for name, masks in self.masks.items()}
        block, see = self.config.runtime.block_size, lambda x: self.seen(x).half()
        blocks = {
            name: in_blocks(see, self.split(name).images, block, self.device, place=place) for name in self.images
        }
        return {name: gathered(blocks[name], len(self.masks[name]), place, torch.float16) for name in self.images}

    def split(self, name: str) -> Split:
        """Its images."""
        found = self.images[name]
        assert found is not None
        return found

    def seen(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D, h, w)."""
        with torch.no_grad():
            shown = self.preprocess.preprocess(centre(pixels, self.stats.size))
            return feature_map(self.network, shown).float()

    def maps(self, name: str) -> dense.Maps:
        """What gives the maps of some rows of a split."""
        if self.kept is not None:
            all_maps = self.kept[name]
            return lambda rows: sent(all_maps[rows], self.device).float()
        images = self.split(name).images
        return lambda rows: self.seen(sent(images[rows], self.device))

    # ------------------------------------------------------------------------------------------------------ heads

    def number(self, name: str) -> Facts:
        """The scores of a head on test, with the rate that was chosen and what it cost; the maps count where made here.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        started, made = time.perf_counter(), "kept" not in self.__dict__
        every = torch.arange(len(self.masks["train"]))
        rates = (self.settings.segment_lr,) if self.settings.segment_lr else dense.RATES
        with torch_seed(0, "segment", name):  # for the FCN head's dropout, too
            rate = self.chosen(name, every, rates) if len(rates) > 1 else rates[0]
            (head,) = self.trained(name, every, (rate,), "all")
        masks = self.masks["test"]
        counts = self.counted(head, "test", torch.arange(len(masks)))
        if not int(counts.sum()):
            raise MissingError("no pixel of the test masks counts: all of them have the label that is ignored")
        trainings = 1 + (len(rates) if len(rates) > 1 else 0)
        return {
            **dense.scores(counts, self.names, self.background),
            "rate": rate,
            "steps": self.settings.segment_steps,
            "map": list(self.shape),
            "flops": self.flops(head, trainings, made),
            "seconds": time.perf_counter() - started,
        }

    def chosen(self, name: str, every: Tensor, rates: tuple[float, ...]) -> float:
        """The rate with the best mean IoU on a held-out tenth of train."""
        order = permutation(stream_key(0, "held out"), len(every))
        held_out, rest = order[::HELD_OUT], order[torch.arange(len(order)) % HELD_OUT != 0]
        if not len(rest):
            return rates[0]
        heads = self.trained(name, rest, rates, "rates")
        found = [float(dense.iou(self.counted(head, "train", held_out)).nanmean()) for head in heads]
        return rates[found.index(max(found))]

    def trained(self, name: str, rows: Tensor, rates: tuple[float, ...], what: str) -> list[nn.Module]:
        """A head for each rate, trained side by side on the same batches."""
        heads = []
        for _ in rates:
            with torch_seed(0, "segment", "init", name):
                heads.append(dense.head(name, self.shape[0], len(self.names)).to(self.device))
        steps, size = self.settings.segment_steps, self.settings.segment_batch_size
        maps = self.maps("train")
        with Progress(f"segment {name}, {what}", steps) as progress:

            def after(step: int, loss: Tensor) -> None:
                if step % 50 == 0 and not loss.isfinite():
                    raise NonFiniteError(
                        f"segment: the loss is {loss.item()} at step {step}; say probe.segment_lr=1e-4"
                    )
                progress.show(step)

            dense.fit(heads, rates, maps, self.masks["train"], rows, steps, size, after)
        return heads

    def counted(self, head: nn.Module, split: str, rows: Tensor) -> Tensor:
        """(C, C) counts of pixels."""
        size = self.settings.segment_batch_size
        return dense.confusion_of(head, self.maps(split), self.masks[split], rows, len(self.names), size)

    def flops(self, head: nn.Module, trainings: int, made: bool) -> int:
        """Of the trainings of a head, and of the maps of all images where they were made for it."""
        size = self.preprocess.preprocess.image_size or self.stats.size
        image = torch.zeros(1, 3, size, size, device=self.device)
        of_map = torch.zeros(1, *self.shape, device=self.device)
        images = sum(map(len, self.masks.values())) if made else 0
        steps = self.settings.segment_steps * min(self.settings.segment_batch_size, len(self.masks["train"]))
        with torch.no_grad():
            forward = count_flops(lambda: feature_map(self.network, image))
        if self.kept is None:
            images = len(self.masks["test"]) + steps * trainings
        return forward * images + count_flops(lambda: head.eval()(of_map).sum().backward()) * steps * trainings


def highest(masks: Tensor) -> int:
    """The largest class number in (N, S, S) masks; -1 where all pixels are ignored."""
    kept = masks[masks != dense.IGNORED]
    return int(kept.max()) if len(kept) else -1
