"""Hydra's config repository that reads each yaml once in a process, so that many configs are composed faster.

A file is read again when its time or its size has changed.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

loaded: dict[tuple[Any, ...], ConfigResult] = {}  # by where a file is, and by its time and size


class YamlFiles(ConfigRepository):
    """The yamls of a search path: those in folders, and those of Hydra's own package."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Hydra's own answer, with a copy of the content: the overrides are written into it."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() not in ("file", "pkg"):
            return super().load_config(config_path)
        known: tuple[Any, ...] = (source.scheme(), source.provider, source.path, config_path)
        if source.scheme() == "file":
            status = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))
            known += (status.st_mtime_ns, status.st_size)
        if known not in loaded:
            found = super().load_config(config_path)
            assert found is not None
            loaded[known] = found
        return replace(loaded[known], config=deepcopy(loaded[known].config))
