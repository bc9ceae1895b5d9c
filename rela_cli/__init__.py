"""ReLA: self-supervised training that starts from the features of models that are already there.

In a loop of your own (docs/api.md):

    import rela_cli as rela
    data = rela.open("FOLDER")                                      # what `rela convert` has written
    sampler = rela.DynamicSubset(len(data), budget=0.5, seed=0)
    matching = rela.Matching(learner, data)                         # matching.loss(features, indices), matching.done

Or all of it:

    run = rela.train(["budget=0.5", "prior=random"])

Importing this package imports neither torch nor Hydra; each comes in where it is first used. Types: __init__.pyi.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "Augment": "api.augment",
    "Config": "config.schema",
    "DynamicSubset": "api.subset",
    "EfficientDataset": "api.efficient",
    "Matching": "api.matching",
    "RelaError": "errors",
    "Table": "api.runs",
    "TrainedRun": "api.runs",
    "Whitening": "api.maps",
    "compose": "config.compose",
    "extract": "api.features",
    "load_backbone": "learners.build",
    "open": "api.efficient:open_folder",
    "probe": "api.features",
    "run": "pipeline.pipeline",
    "table": "api.runs",
    "train": "api.runs",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, own = _HOMES[name].partition(":")
    value = getattr(import_module(f"{__name__}.{home}"), own or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
