"""Tensors by name into networks: whatever wrapper the names come in, all keys or an error that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rela_cli.config.schema import RANDOM
from rela_cli.errors import ConfigError
from rela_cli.learners.build import load_state, refused
from rela_cli.priors import from_transformers
from rela_cli.priors.reading import State, read_state, some

CLASSIFIER_NAMES = (
    "fc",
    "linear",
    "classifier",
    "head",
    "heads",
    "last_linear",
)  # what people call a classifier of their own
PREFERRED_NETWORK = "teacher"  # of two networks in one file, the one that is evaluated (DINO, section 3.1)
FIT = 0.1  # share of a network's keys under a prefix, below which it is not the place of the network
PARALLEL = "module"  # DataParallel's name, when it stands around a part of a network
COUNTER = "num_batches_tracked"  # absent before torch 0.4.1, and of no use in eval mode


def trimmed(state: State, keys: Sequence[str], source: object, prefix: str | None = None) -> State:
    """The part of `state` that holds one network, under the network's own names.

    Whatever stands before the network's keys goes: `state_dict.`, `model.`, `module.`, `teacher.backbone.`,
    `visual.`. `keys` are what the network is known by: those of its parameters.

    Raises:
        ConfigError: two networks in one file and no `prefix` to choose by, or a prefix that is not there.
    """
    if prefix is None:
        prefix = _found_prefix(state, keys, source)
    elif prefix:
        prefix = prefix.removesuffix(".") + "."  # with or without its dot
        if not any(name.startswith(prefix) for name in state):
            raise ConfigError(f"prior.prefix={prefix}: no key of {source} starts with it; there are {some([*state])}")
    inside = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return inside if any(PARALLEL in key.split(".") for key in keys) else _without_parallel(inside, source)


def _without_parallel(state: State, source: object) -> State:
    """Remove DataParallel's wrapper from names: `features.module.0.weight` becomes `features.0.weight`."""
    found: State = {}
    for name, tensor in state.items():
        name = ".".join(part for part in name.split(".") if part != PARALLEL) or name
        if name in found:
            raise ConfigError(f"{source} holds {name} with and without module.; say prior.prefix=")
        found[name] = tensor
    return found


def _found_prefix(state: State, keys: Sequence[str], source: object) -> str:
    """The prefix under which most of `keys` are found."""
    covered: dict[str, int] = {}
    for key in keys:
        for name in state:
            if name == key or name.endswith(f".{key}"):
                before = name[: len(name) - len(key)]
                covered[before] = covered.get(before, 0) + 1
    most = max(covered.values(), default=0)
    if most < FIT * len(keys):
        return ""  # `cls_token` alone is found under many a name: `load` says what does not fit
    best = [prefix for prefix, count in covered.items() if count == most]
    if len(best) > 1:
        best = [prefix for prefix in best if PREFERRED_NETWORK in prefix.split(".")] or best
    if len(best) > 1:
        prefixes = ", ".join(sorted(best))
        raise ConfigError(f"{source} holds {len(best)} networks; say prior.prefix= one of {prefixes}")
    return best[0] if best else ""  # `load` says what does not fit


def load_whole(network: nn.Module, state: State, source: object, ignore: Sequence[str] = ()) -> None:
    """Put `state` into `network`: every key, or an error; a classifier left over is left out.

    Raises:
        ConfigError: missing or unexpected keys, or shapes or numbers of another kind, by name.
    """
    own = network.state_dict()
    heads = (*CLASSIFIER_NAMES, *getattr(network, "classifiers", ()))
    left_out = [*(outermost(head, own) for head in heads), *ignore]
    state = {k: v for k, v in state.items() if k in own or not any(covers(name, k) for name in left_out)}
    counters = {k: v for k, v in own.items() if k.endswith(COUNTER) and k not in state}
    missing = [k for k in own if k not in state and k not in counters]
    unexpected = [k for k in state if k not in own and not k.endswith(COUNTER)]
    shared = [k for k in state if k in own]
    shapes = [f"{k} {_shape(state[k])} for {_shape(own[k])}" for k in shared if state[k].shape != own[k].shape]
    kinds = [f"{k} {_kind(state[k])} for {_kind(own[k])}" for k in shared if not _is_like(state[k], own[k])]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another kind": kinds}
    if (missing or unexpected) and not (shapes or kinds) and _takes_older(network, state):
        return
    if problems := [f"{what}: {some(names)}" for what, names in wrong.items() if names]:
        words = "\n".join([*problems, _advice(own, state, missing, unexpected)])
        raise ConfigError(f"{source} does not fit this network\n{words}")
    with refused(f"{source} does not fit this network"):
        load_state(network, counters | {k: state[k] for k in shared})


def _takes_older(network: nn.Module, state: State) -> bool:
    """Whether the network's own modules know the names as older ones of theirs, as torchvision's transformers do."""
    try:
        found = network.load_state_dict(dict(state), strict=False)
    except Exception:  # each module has its own; the names are listed then
        return False
    return not found.unexpected_keys and all(key.endswith(COUNTER) for key in found.missing_keys)


def covers(name: str, key: str) -> bool:
    """Whether a key is `name`, or a part of that module."""
    return key == name or key.startswith(f"{name}.")


def outermost(name: str, own: Mapping[str, Tensor]) -> str:
    """The outermost module around `name` that the network has no keys of: `head_dist` of `head_dist.linear`."""
    parts = name.split(".")
    around = (".".join(parts[: n + 1]) for n in range(len(parts)))
    return next((module for module in around if not any(covers(module, key) for key in own)), name)


def _advice(own: State, state: State, missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """The likeliest way out of a misfit."""
    stems = [tuple(s["conv1.weight"].shape[-2:]) for s in (own, state) if "conv1.weight" in s]
    if {*stems} == {(3, 3), (7, 7)}:
        height, width = stems[1]
        return f"the stems differ, a {height}x{width} one in the file: choose prior.stem=cifar (3x3) or imagenet (7x7)"
    if unexpected and not missing:
        names = dict.fromkeys(outermost(name, own) for name in unexpected)
        return f"if those are no part of the network say 'prior.ignore=[{','.join(names)}]'"
    return "is it another model, say prior.model=, or another network in the file, say prior.prefix="


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _is_like(tensor: Tensor, own: Tensor) -> bool:
    """Whether numbers can be taken over as they are: plain ones, and floats for floats alone."""
    of_a_kind = tensor.is_complex() == own.is_complex() and tensor.is_floating_point() == own.is_floating_point()
    return _is_plain(tensor) and of_a_kind


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def _kind(tensor: Tensor) -> str:
    """What its numbers are: float32, or sparse_coo float32."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return kind if _is_plain(tensor) else f"{str(tensor.layout).removeprefix('torch.')} {kind} on {tensor.device}"


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and how a user wants it read.

    weights: its path, or `random` for none. trust: a file that can run code may be opened. prefix: where the network's
    keys start. ignore: first names of keys to leave out.
    """

    weights: str
    trust: bool = False
    prefix: str | None = None
    ignore: Sequence[str] = ()


def fill_network(network: nn.Module, file: WeightsFile, convert: Callable[[State], State] | None = None) -> nn.Module:
    """`network` with the weights of a file, or as it is where they are `random`.

    `convert` is the library's own translation of older names and sizes.

    Raises:
        ConfigError: weights that do not fit, or a file that needs trust. MissingError: not a file of weights.
    """
    if file.weights == RANDOM:
        return network
    path = Path(file.weights)
    state = read_state(path, file.trust)
    prefix = file.prefix and file.prefix.removesuffix(".") + "."
    if found := from_transformers.recognise(state, path, prefix):
        state, prefix = from_transformers.translated(state, found, network, path), None
    state = trimmed(state, [name for name, _ in network.named_parameters()], path, prefix)
    if convert:  # which may have to interpolate, and CPUs cannot do that in half precision
        with refused(f"{path} does not fit this network: its names and sizes cannot be translated"):
            state = convert({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    try:
        load_whole(network, state, path, file.ignore)
    except ConfigError as error:
        raise ConfigError(f"{error}\n{path} is {found}; {found.prior}" if found else str(error)) from error
    if found:
        from_transformers.settle(network, found, path)
    return network
