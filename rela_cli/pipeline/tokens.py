"""What extract.tokens=true asks of a prior and a learner, before any work, and what its feature maps take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rela_cli.config.lengths import components_kept
from rela_cli.config.schema import Config
from rela_cli.errors import ConfigError, RelaError
from rela_cli.pipeline import preflight
from rela_cli.pipeline.preflight import BOX_BYTES, FLOAT16_BYTES
from rela_cli.pipeline.run import Run
from rela_cli.store.disk import ensure_room
from rela_cli.store.files import size_of
from rela_cli.store.notices import warn

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rela_cli.data.batches.tokens import TargetsWithCells, TokenTargets
    from rela_cli.priors.base import Prior
    from rela_cli.priors.cells import Cells

UNKNOWN_WIDTH = 768  # of the cells of a prior that cannot be built here


@dataclass(frozen=True)
class MapSizes:
    """How many feature maps are kept, the cells of each, their width, and that of their targets."""

    maps: int
    cells: int
    channels: int
    targets: int  # components of each cell that are kept
    matched: int  # of these, what a learner's map is matched to

    @property
    def feature_bytes(self) -> int:
        """Features in fp16."""
        return FLOAT16_BYTES * self.maps * self.cells * self.channels

    @property
    def target_bytes(self) -> int:
        """Targets in fp16."""
        return FLOAT16_BYTES * self.maps * self.cells * self.targets

    @property
    def bytes(self) -> int:
        return self.feature_bytes + self.target_bytes

    def blank(self, images: int, size: int, device: torch.device | str = "cpu") -> TokenTargets:
        """Targets without content, of images of `size` px."""
        from rela_cli.data.batches.tokens import TokenTargets

        return TokenTargets.blank(images, self.cells, self.matched, size, device)

    def beside(self, pooled: Tensor, rows: Tensor, size: int) -> TargetsWithCells:
        """Such targets of the two views of samples (B,), beside those of their representations."""
        from rela_cli.data.batches.tokens import TargetsWithCells

        blank = self.blank(len(rows), size, rows.device)
        return TargetsWithCells(pooled, blank.of_views(rows, rows.new_zeros(2, len(rows))))


def map_sizes(config: Config, images: int, size: int, make: Callable[[], Prior]) -> MapSizes:
    """Of a run with so many train images of `size` px; guessed where the prior cannot be built here."""
    from rela_cli.config.parts import instantiate
    from rela_cli.learners.build import build_backbone
    from rela_cli.learners.maps import map_shape
    from rela_cli.priors.cells import Cells
    from rela_cli.transports.base import matched_width

    grid, mapping = config.extract.token_grid, instantiate(config.transport)
    try:
        prior = Cells(make(), grid, size)
        cells, channels = prior.count, prior.channels
    except RelaError:
        cells, channels = grid**2, UNKNOWN_WIDTH
    kept = components_kept(config.transport, channels)
    own = map_shape(build_backbone(config.learner, config.seed, size), size)[0]
    maps = images * (config.extract.views if config.has_views else 1)
    return MapSizes(maps, cells, channels, kept, matched_width(own, kept, mapping.ordered, mapping.per_feature))


def channels_of(backbone: nn.Module, run: Run, size: int) -> int:
    """Width of the learner's feature map of images of `size` px.

    Raises:
        ConfigError: it has none.
    """
    from rela_cli.learners.maps import map_shape

    try:
        return map_shape(backbone, size)[0]
    except ConfigError as error:
        raise ConfigError(f"extract.tokens=true does not go with learner={run.config.learner.name}: {error}") from error


def check_prior(run: Run, size: int, until: str) -> None:
    """The prior has a feature map, and what is kept of it has room on the disk.

    Raises:
        ConfigError: it has none. DiskError: there is no room.
    """
    if run.artifacts.tokens.manifest and run.artifacts.token_targets.manifest:
        return
    cells = map_of_prior(run, size)
    if cells.count == 1:
        warn(
            f"extract.tokens=true: the map of prior={run.config.prior.name} has one cell for images of {size} px, and "
            f"says nowhere what is where; larger images (dataset.image_size, prior.image_size) give it more"
        )
    sizes = needs(run, cells, until)
    ensure_room(run.outputs / "cache", sum((*sizes.values(), *preflight.needs(run, until).values())))


def map_of_prior(run: Run, size: int) -> Cells:
    """The prior as it gives the map of images of `size` px; not fitted to anything.

    Raises:
        ConfigError: it has none.
    """
    from rela_cli.data.batches.cache import ImageStats
    from rela_cli.priors.cells import Cells
    from rela_cli.priors.fitting import built_prior

    config = run.config
    prior = built_prior(config, ImageStats.grey(size))
    try:
        return Cells(prior, config.extract.token_grid, size)
    except ConfigError as error:
        raise ConfigError(f"extract.tokens=true does not go with prior={config.prior.name}: {error}") from error


def needs(run: Run, cells: Cells, until: str) -> dict[str, int]:
    """Bytes of the entries that are still to be made, by kind."""
    found, of_views = {}, run.config.extract.views if run.config.has_views else 0
    maps = run.lengths.train_samples * (of_views or 1) * cells.count
    if run.artifacts.tokens.manifest is None:
        boxes = BOX_BYTES * of_views * run.lengths.train_samples
        found["tokens"] = max(0, FLOAT16_BYTES * cells.channels * maps + boxes - size_of(run.artifacts.tokens.part))
    if until != "extract" and run.artifacts.token_targets.manifest is None:
        found["token_targets"] = FLOAT16_BYTES * components_kept(run.config.transport, cells.channels) * maps
    return found
