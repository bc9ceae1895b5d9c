"""`rela fetch`: the weights and the data that runs need, beforehand, so that the runs themselves need no network."""

from __future__ import annotations

from rela_cli.config.compose import Composer, compose
from rela_cli.config.overrides import CONFIG_FLAGS, RunParser, parse
from rela_cli.config.schema import PRETRAINED, Config, Part
from rela_cli.data.base import open_dataset
from rela_cli.store.integrity import digest
from rela_cli.weights import locate


def main(argv: list[str]) -> int:
    """Fetch for one config, or with -m for every cell of a sweep: `rela fetch -m prior=clip_rn50,dinov2_vits14`.

    Raises:
        MissingError: something is not in the cache and cannot be had.
    """
    line = parse(parser().words(argv))
    composer = Composer(line)
    if line.is_sweep:
        cells, _ = composer.cells()
        configs = [compose(cell, line.flags.get("--config-dir")) for cell in cells]
    else:
        configs = [composer.check()]
    for prior in (prior for config in configs for prior in config.prior.singles):
        fetch_weights(prior)
    for config in {str(config.dataset.identity): config for config in configs}.values():
        fetch_data(config)
    return 0


def parser() -> RunParser:
    """The command line of `rela fetch`."""
    return RunParser(
        "fetch",
        "Downloads the weights and the data that runs need, so that the runs themselves need no network.",
        ["rela fetch prior=clip_vitb16 dataset=cifar10", "rela fetch -m prior=clip_rn50,dinov2_vits14"],
        (*CONFIG_FLAGS, "--multirun"),
    )


def fetch_weights(prior: Part) -> None:
    """The prior's file, and where it lies."""
    path = locate.locate(prior)
    if path is None:
        print(f"prior={prior.name} needs no weights")
        return
    how = "" if prior.options.get("weights") == PRETRAINED else " (yours)"
    print(f"prior={prior.name}{how}: {path}, {path.stat().st_size / 1e6:.1f} MB, sha256 {digest(path)}")


def fetch_data(config: Config) -> None:
    """The dataset's files; a dataset in memory or in a folder of the user's has nothing to fetch."""
    dataset = open_dataset(config)
    dataset.fetch()
    print(f"dataset={config.dataset.name}: {dataset.count('train')} train, {dataset.count('test')} test images")
