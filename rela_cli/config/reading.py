"""From a composed tree to the schema and back: types, ranges and the checks that need two keys."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from rela_cli.config.options import OPTIONS
from rela_cli.config.schema import (
    EFFICIENT,
    ENSEMBLE,
    HOMES,
    NO_MAP,
    NO_MEMBERS,
    OWN_KEYS,
    PART_GROUPS,
    POOLS,
    PRETRAINED,
    PROTOCOLS,
    Card,
    Config,
    Part,
)
from rela_cli.distributed import ranks
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.terminal import plural


def from_tree(tree: Mapping[str, Any]) -> Config:
    """The validated `Config` of a composed, resolved tree of plain values.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems: list[str] = []
    tree = {**tree, "budget": 1.0 if tree.get("budget") is None else tree["budget"]}
    tree = {k: v for k, v in tree.items() if k not in ("experiment", "sweep", "hydra")}
    config = typing.cast(Config, _record(Config, tree, "", problems))
    if not problems:
        _cross_checks(config, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def to_tree(config: Config) -> dict[str, Any]:
    """The plain tree of a config, in the form that `from_tree` takes and config.yaml shows."""
    tree = dataclasses.asdict(config)
    for group in PART_GROUPS:
        part: Part = getattr(config, group)
        tree[group] = {**part.tree, **tree[group]["options"]}
    return tree


def _record(cls: type, value: Any, key: str, problems: list[str]) -> Any:
    """A dataclass from a mapping; keys are checked both ways."""
    if not isinstance(value, Mapping):
        problems.append(f"{key}={value} must be a group of keys, not a single value")
        return None
    if cls is Part:
        return _part(value, key, problems)
    hints = typing.get_type_hints(cls, include_extras=True)
    problems += [f"unknown key {_join(key, k)}{did_you_mean(k, hints)}" for k in value if k not in hints]
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    problems += [f"missing key {_join(key, k)}" for k in hints if k in required and k not in value]
    known = {k: _checked(hints[k], v, _join(key, k), problems) for k, v in value.items() if k in hints}
    return cls(**known) if required <= known.keys() else None


def _part(value: Mapping[str, Any], group: str, problems: list[str]) -> Part | None:
    """A part from its yaml. The yaml is its own list of keys; those that ours share are checked by type."""
    lacking = [k for k in ("name", "_target_") if not isinstance(value.get(k), str)]
    if lacking:
        problems.append(f"{group} has no {' and no '.join(lacking)}: its yaml must say both")
        return None
    hints = typing.get_type_hints(OPTIONS[group.partition(".")[0]], include_extras=True)
    if value["_target_"] != ENSEMBLE:
        hints.pop("members", None)  # of a part from outside they may be anything
    options: dict[str, Any] = {}
    for key, option in value.items():
        if key not in OWN_KEYS:
            options[key] = _checked(hints[key], option, f"{group}.{key}", problems) if key in hints else option
    if value["_target_"] == ENSEMBLE:
        options["members"] = [part.tree for part in options.get("members", ()) if isinstance(part, Part)]
    card = _record(Card, value.get("card") or {}, f"{group}.card", problems)
    return Part(value["name"], value["_target_"], options, card)


def _checked(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """`value` as `hint` wants it; a complaint goes to `problems`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _checked(arguments[0], value, key, problems)
    if origin is Annotated:
        before = len(problems)
        value = _checked(arguments[0], value, key, problems)
        complaint = arguments[1].complaint(value) if len(problems) == before else None
        if complaint:
            problems.append(f"{key}={value} {complaint}")
        return value
    if origin is tuple:
        return _sequence(arguments, value, key, problems)
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, key, problems)
    return _scalar(hint, value, key, problems)


def _sequence(arguments: tuple[Any, ...], value: Any, key: str, problems: list[str]) -> Any:
    hints = arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, list | tuple) else arguments
    if not isinstance(value, list | tuple) or len(hints) != len(value):
        problems.append(f"{key}={value} must be a list" + (f" of {len(hints)}" if arguments[1:] != (...,) else ""))
        return value
    return tuple(_checked(h, v, f"{key}[{i}]", problems) for i, (h, v) in enumerate(zip(hints, value, strict=True)))


WEIGHTS = {"onnx": "an .onnx file", "exported": "a .pt2 or TorchScript file"}  # of other priors: see `_check_prior`
TYPE_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def _scalar(hint: type, value: Any, key: str, problems: list[str]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        as_typed = value is None or (hint is str and isinstance(value, bool))
        shown = {None: "null", True: "true", False: "false"}[value] if as_typed else value
        problems.append(f"{key}={shown} must be {TYPE_WORDS[hint]}{_quoting(hint, value, key)}")
    return value


def _quoting(hint: type, value: Any, key: str) -> str:
    """How text is written that YAML, or Hydra, would read as something else: a yaml has 2024_11_28 as 20241128."""
    if hint is not str or not isinstance(value, int | float | None):
        return ""
    return f'; if it is text put it in quotes in the yaml ({key.rpartition(".")[2]}: "..."), or say \'{key}="..."\''


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _cross_checks(config: Config, problems: list[str]) -> None:
    """Rules that tie several keys together; those that need the dataset's size stand in `Lengths`."""
    if not config.probe.protocols:
        problems.append(f"probe.protocols is empty; allowed are {', '.join(PROTOCOLS)}")
    for prior in config.prior.singles:
        _check_prior(prior, problems)
    _check_members(config.prior, problems)
    _check_brought(config, problems)
    _check_views(config, problems)
    _check_tokens(config, problems)
    _check_batch(config, problems)
    _check_norm(config, problems)
    _check_gradient_hook(config, problems)
    for group in PART_GROUPS:
        part: Part = getattr(config, group)
        if part.target.partition(".")[0] == "rela_cli" and not part.target.startswith(HOMES[group]):
            problems.append(f"{group}={part.name} names {part.target}, but a {group} is one of {HOMES[group]}*")
        problems += [
            f"{group}={part.name} wants to run {target}, which is not part of rela; "
            f"if you trust it say allow=[{target.partition('.')[0]}]"
            for target in part.foreign(("rela_cli", *config.allow))
        ]


def _check_views(config: Config, problems: list[str]) -> None:
    """Cached views are another way to targets of views than a live prior is."""
    if config.has_views and config.is_live:
        problems.append(
            f"extract.views={config.extract.views} caches targets of views and matching.targets=live makes them anew "
            f"in every step: say one of them"
        )


def _check_tokens(config: Config, problems: list[str]) -> None:
    """Who can give a feature map, and what cannot look into a network while it trains."""
    if not config.has_tokens:
        return
    leave = "or leave extract.tokens out"
    if why := NO_MAP.get(config.prior.target):
        problems.append(
            f"extract.tokens=true needs the feature map of prior={config.prior.name}, and {why}: say another prior, "
            f"such as prior=embedded or prior=dinov2_vits14, {leave}"
        )
    if config.is_live:
        problems.append(
            f"extract.tokens=true keeps feature maps and matching.targets=live keeps nothing: say "
            f"matching.targets=cached, {leave}"
        )
    if config.runtime.compile != "off":
        problems.append(
            f"extract.tokens=true looks at the feature map inside the learner, which runtime.compile="
            f"{config.runtime.compile} hides: say runtime.compile=off, {leave}"
        )


def _check_brought(config: Config, problems: list[str]) -> None:
    """The prior and the transport of an efficient dataset go together, and with nothing else."""
    prior, transport, dataset = config.prior.name, config.transport.name, config.dataset.name
    is_brought = config.prior.target == EFFICIENT
    if is_brought and dataset != "efficient":
        problems.append(f"prior=efficient goes with dataset=efficient, not with dataset={dataset}: say another prior")
    elif is_brought and transport != "efficient":
        problems.append(
            f"transport={transport} cannot change the targets that an efficient dataset brings: leave it out, or say "
            f"a prior, too, whose features it is to map (prior=NAME transport={transport})"
        )
    if is_brought and config.is_live:
        problems.append(
            "matching.targets=live needs the prior itself, and an efficient dataset brings its targets alone: say "
            "prior=NAME transport=whitening"
        )
    if transport == "efficient" and not is_brought and not config.is_plain:
        problems.append(f"prior={prior} needs a transport of its own: say transport=whitening, or leave prior= out")


def _check_batch(config: Config, problems: list[str]) -> None:
    """A batch can be shared out evenly."""
    shares = max(config.runtime.devices, ranks.world()) * config.accumulate
    if config.batch_size % shares or config.batch_size < 2 * config.accumulate:
        near = max(2 * config.accumulate, shares, config.batch_size // shares * shares)
        processes = plural(shares // config.accumulate, "process", "processes")
        problems.append(
            f"batch_size={config.batch_size} cannot be shared out evenly over {processes} "
            f"times accumulate={config.accumulate}; say batch_size={near}"
        )


def _check_norm(config: Config, problems: list[str]) -> None:
    """Each group of batch norms has equally many images, on whole processes or of one."""
    processes = max(config.runtime.devices, ranks.world())
    groups = ranks.norm_groups(config.runtime.norm, config.runtime.devices)
    if groups > 1 and (config.batch_size % (groups * config.accumulate) or (groups % processes and processes % groups)):
        problems.append(
            f"runtime.norm={config.runtime.norm} gives {groups} groups of images, and batch_size={config.batch_size} "
            f"on {plural(processes, 'process', 'processes')} with accumulate={config.accumulate} has no such equal "
            f"parts; say runtime.norm=global, or numbers that divide each other"
        )
    elif groups > 1 and config.batch_size // (groups * config.accumulate) < 2:
        problems.append(
            f"runtime.norm={config.runtime.norm} leaves a batch norm one image, which has no variance: say "
            f"batch_size={2 * groups * config.accumulate} or runtime.norm=global"
        )


def _check_gradient_hook(config: Config, problems: list[str]) -> None:
    """Gradients go between processes, so there are several."""
    if config.runtime.gradient_hook != "none" and max(config.runtime.devices, ranks.world()) == 1:
        problems.append(
            f"runtime.gradient_hook={config.runtime.gradient_hook} is about what several devices send each other, and "
            f"this run has one: leave it out, or say runtime.devices=N"
        )


def _check_members(prior: Part, problems: list[str]) -> None:
    """An ensemble is of several priors of ours or of the user's, each once."""
    if prior.target != ENSEMBLE:
        return
    found = [f"{member.identity} {member.options}" for member in prior.members]
    if len(found) < 2:
        problems.append("prior=ensemble needs two priors or more, such as prior.members=[patches,embedded]")
    problems += [
        f"prior.members has {member.name} twice with the same keys: its targets would stand there twice"
        for number, member in enumerate(prior.members)
        if found[number] in found[:number]
    ]
    for member in prior.members:
        if reason := NO_MEMBERS.get(member.target):
            problems.append(f"prior.members has {member.name}: {reason}")
        elif member.target.startswith("rela_cli.") and not member.target.startswith(HOMES["prior"]):
            problems.append(f"prior.members names {member.target}, but a prior is one of {HOMES['prior']}*")


def _check_prior(prior: Part, problems: list[str]) -> None:
    """What a prior cannot do without."""
    weights = prior.options.get("weights")
    if weights == "":
        file = WEIGHTS.get(prior.name, "a .safetensors or weights-only .pth file")
        problems.append(f"prior={prior.name} needs prior.weights=PATH ({file})")
    grid = "patches" in prior.options  # of the prior that is made of patches; of others it is a name
    pool = prior.options.get("pool")
    if prior.target.startswith("rela_cli.") and pool is not None and isinstance(pool, int) != grid:
        wants = "a whole number" if grid else f"one of {', '.join(POOLS)}"
        problems.append(f"prior.pool={pool} must be {wants} for prior={prior.name}")
    if prior.options.get("model") == "":
        problems.append(f"prior={prior.name} needs prior.model=NAME")
    if prior.options.get("run") == "":
        problems.append(f"prior={prior.name} needs prior.run=FOLDER, a finished run such as outputs/runs/latest")
    if weights == PRETRAINED and prior.options.get("model") and "tag" in prior.options and not prior.options["tag"]:
        problems.append(f"prior={prior.name} needs prior.tag=TAG (whose weights), or prior.weights=PATH")
