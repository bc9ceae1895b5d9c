"""Settings in results of older versions, read as settings of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rela_cli.config.identity import identity_of
from rela_cli.store.files import section


def settings_of_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with each part's class as it is written today: `class`, without the module where the class is ours.

    Older versions wrote the whole path, as `_target_`, and in the prior's settings as `target`.
    """
    prior = section(settings, "prior")
    if isinstance(prior.get("target"), str) and "class" not in prior:
        rest = {key: value for key, value in prior.items() if key != "target"}
        settings = {**settings, "prior": {"_target_": prior["target"], **rest}}
    return dict(identity_of(settings))
