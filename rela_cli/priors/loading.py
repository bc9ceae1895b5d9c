"""Weights files into networks: whatever wrapper they come in, all keys or an error that names them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rela_cli.config import RANDOM
from rela_cli.errors import ConfigError, MissingError
from rela_cli.priors import from_transformers
from rela_cli.weights import kind_of

HEADS = ("fc", "linear", "classifier", "head", "heads", "last_linear")  # classifiers, which a prior has no use for
PREFERRED = "teacher"  # of two networks in one file, the one that is evaluated (DINO, section 3.1)
FIT = 0.1  # share of a network's keys under a prefix, below which it is not the place of the network
SHOWN = 4  # keys spelled out in a message

State = dict[str, Tensor]


def read_state(path: Path, trust: bool = False) -> State:
    """All tensors of a file by dotted names, from any nesting; nothing is unpickled but tensors.

    Raises:
        MissingError: not a file of weights, or a damaged one. ConfigError: TorchScript without trust.
    """
    kind = kind_of(path)
    if kind == "script" and not trust:
        raise ConfigError(f"{path} is a TorchScript archive; say prior.trust=true if you trust it")
    if kind == "export":
        raise ConfigError(f"{path} is an exported program: say prior=exported prior.weights={path} prior.trust=true")
    try:
        if kind == "safetensors":
            return load_file(path)
        content = load_script(path).state_dict() if kind == "script" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # every library has its own
        raise MissingError(f"{path} cannot be read: {_first_line(error)}") from error
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in _flat(content)}


def load_script(path: Path) -> Any:
    """A TorchScript archive; torch's own warning that the format is old helps nobody here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path, map_location="cpu")


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside nested mappings, such as {"epoch": 3, "model": {"module.conv1.weight": ...}}."""
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}{key}.")


def trimmed(state: State, keys: Sequence[str], source: object, prefix: str | None = None) -> State:
    """The part of `state` that holds one network, under the network's own names.

    Whatever stands before the network's keys goes: `state_dict.`, `model.`, `module.`, `teacher.backbone.`,
    `visual.`. `keys` are what the network is known by: those of its parameters.

    Raises:
        ConfigError: two networks in one file and no `prefix` to choose by, or a prefix that is not there.
    """
    if prefix is None:
        prefix = _found_prefix(state, keys, source)
    elif not any(name.startswith(prefix) for name in state):
        raise ConfigError(f"prior.prefix={prefix}: no key of {source} starts with it; there are {_some(state)}")
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


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
        best = [prefix for prefix in best if PREFERRED in prefix.split(".")] or best
    if len(best) > 1:
        raise ConfigError(f"{source} holds {len(best)} networks; say prior.prefix= one of {', '.join(sorted(best))}")
    return best[0] if best else ""  # `load` says what does not fit


def load(network: nn.Module, state: State, source: object, ignore: Sequence[str] = ()) -> None:
    """Put `state` into `network`: every key, or an error; a classifier left over is left out.

    Raises:
        ConfigError: missing or unexpected keys, or shapes that differ, by name.
    """
    own = network.state_dict()
    left_out = (*HEADS, *ignore)
    state = {k: v for k, v in state.items() if k in own or k.partition(".")[0] not in left_out}
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}  # absent before torch 0.4.1
    missing = [k for k in own if k not in state and k not in counters]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {_shape(state[k])} for {_shape(own[k])}" for k in state if k in own and state[k].shape != own[k].shape
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ConfigError(
            f"{source} does not fit this network\n" + "\n".join([*problems, _advice(own, state, unexpected)])
        )
    network.load_state_dict({k: v.to(own[k].dtype) for k, v in (counters | state).items()})


def _advice(own: State, state: State, unexpected: Sequence[str]) -> str:
    """The likeliest way out of a misfit."""
    stems = [tuple(s["conv1.weight"].shape[-2:]) for s in (own, state) if "conv1.weight" in s]
    if {*stems} == {(3, 3), (7, 7)}:
        height, width = stems[1]
        return f"the stems differ, a {height}x{width} one in the file: choose prior.stem=cifar (3x3) or imagenet (7x7)"
    if unexpected and not set(own) - set(state):
        return f"if those are no part of the network say prior.ignore=[{unexpected[0].partition('.')[0]}]"
    return "is it another model, say prior.model=, or another network in the file, say prior.prefix="


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def fill(
    network: nn.Module,
    weights: str,
    trust: bool = False,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
    convert: Callable[[State], State] | None = None,
) -> nn.Module:
    """`network` with the weights of a file, or as it is when `weights` is `random`.

    `convert` is the library's own translation of older names and sizes.

    Raises:
        ConfigError: weights that do not fit, or a file that needs trust. MissingError: not a file of weights.
    """
    if weights == RANDOM:
        return network
    path = Path(weights)
    state = read_state(path, trust)
    if found := from_transformers.find(state, path, prefix):
        state, prefix = from_transformers.translated(state, found, network, path), None
    state = trimmed(state, [name for name, _ in network.named_parameters()], path, prefix)
    if convert:  # which may have to interpolate, and CPUs cannot do that in half precision
        state = convert({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    try:
        load(network, state, path, ignore)
    except ConfigError as error:
        raise ConfigError(f"{error}\n{path} is {found}; {found.prior}" if found else str(error)) from error
    if found:
        from_transformers.settle(network, found, path)
    return network
