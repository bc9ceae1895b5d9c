"""The members of an ensemble of priors: from a name, or a name with keys, to what the prior's yaml says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rela_cli.config.identity import flattened
from rela_cli.config.schema import ENSEMBLE, NO_MEMBERS, OWN_KEYS
from rela_cli.errors import ConfigError, did_you_mean

WRITTEN = "a member is the name of a prior, or {name: NAME, KEY: VALUE}"


def resolve_members(tree: DictConfig, names: Callable[[], Sequence[str]], load: Callable[[str], DictConfig]) -> None:
    """Put the yaml of each member in its place, with the keys that the member sets; other trees stay as they are.

    names: those of all priors. load: a prior by its name, as its yaml has it.

    Raises:
        ConfigError: an unknown prior, one that cannot be a member, or a key that it does not have.
    """
    prior = tree.get("prior")
    if not isinstance(prior, DictConfig) or OmegaConf.is_missing(prior, "_target_") or prior._target_ != ENSEMBLE:
        return
    members = prior._get_node("members")
    if not isinstance(members, ListConfig):
        raise ConfigError(f"prior.members={prior.members} must be a list, such as prior.members=[patches,embedded]")
    made = [member(item, names(), load) for item in OmegaConf.to_container(members)]  # type: ignore[union-attr]
    with open_dict(prior):
        prior.members = made


def member(item: Any, names: Sequence[str], load: Callable[[str], DictConfig]) -> DictConfig:
    """One member's tree.

    Raises:
        ConfigError: as `resolve_members`.
    """
    name, own = name_and_keys(item)
    if name not in names:
        raise ConfigError(
            f"unknown prior {name} in prior.members{did_you_mean(name, names)} (allowed: {', '.join(names)})"
        )
    made = OmegaConf.create(as_dict(load(name)))
    if reason := NO_MEMBERS.get(str(made._target_)):
        raise ConfigError(f"prior.members has {name}: {reason}")
    for key, value in own.items():
        check_key(made, name, key)
        try:
            OmegaConf.update(made, key, value, merge=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"prior.members: {name} cannot take {key}={value} ({error})") from error
    return made


def as_dict(tree: DictConfig) -> dict[str, Any]:
    """A tree as a plain mapping, its references unresolved."""
    plain = OmegaConf.to_container(tree)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def name_and_keys(item: Any) -> tuple[str, dict[str, Any]]:
    """A member as it was written: the name of its prior, and what it sets, inner keys with dots."""
    if isinstance(item, str):
        return item, {}
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise ConfigError(f"prior.members has {item}: {WRITTEN}")
    return item["name"], dict(flattened({key: value for key, value in item.items() if key != "name"}))


def check_key(made: DictConfig, name: str, key: str) -> None:
    """Raises where the prior's yaml has no such key; a card may say more than its yaml does."""
    first = key.partition(".")[0]
    allowed = [str(known) for known in made if known not in ("name", "_target_")]
    if first in allowed or (first == "card" and key != first):
        return
    shown = [known for known in allowed if known not in OWN_KEYS]
    close, all_keys = did_you_mean(key, shown), ", ".join(shown) or "none"
    raise ConfigError(f"unknown key {key} of {name} in prior.members{close} (allowed: {all_keys})")
