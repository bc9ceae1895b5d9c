"""ReLA: self-supervised training that starts from the features of models that are already there.

    from rela_cli import compose, run
    outcome = run(compose(["budget=0.5", "prior=random"]))

Importing this package imports neither torch nor Hydra; each comes in where it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Config", "RelaError", "__version__", "compose", "load_backbone", "run"]

_HOMES = {
    "Config": "config.schema",
    "RelaError": "errors",
    "compose": "config.compose",
    "load_backbone": "learners.build",
    "run": "pipeline.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
