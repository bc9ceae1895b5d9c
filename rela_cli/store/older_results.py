"""What results of older versions mean where they do not say what results say today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rela_cli.store.files import section

OWN_FILES = ("checkpoint", "exported")  # priors that are always a file of the user's own


def is_unknown(result: Mapping[str, Any]) -> bool:
    """Whether nobody knows which labels a result's prior has seen.

    Older versions did not say it, and took every file of a user's for one that has seen none.
    """
    own_file = result.get("prior") in OWN_FILES or "file" in section(result, "called")
    return bool(result.get("labels_unknown", own_file and not result.get("labels_seen")))
