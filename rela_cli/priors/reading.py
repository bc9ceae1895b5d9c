"""Files into tensors by name: every form that people save, and no code of theirs is run."""

from __future__ import annotations

import _compat_pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.notices import warn
from rela_cli.terminal import few, printable
from rela_cli.weights.kinds import ensure_intact, ensure_plausible, is_zip, kind_of, weight_files, weight_map

State = dict[str, Tensor]

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch's own, wherever they stand
DEPTH, ITEMS = 32, 1_000_000  # how deep and how wide a checkpoint may nest
LEGACY = 5  # pickles in a row at the start of a file by torch before 1.6: the fourth holds the tensors
KEYS_SHOWN = 4  # names spelled out in a message
ANEW = "Load it where it was made, and save its tensors alone: torch.save(model.state_dict(), FILE)"


def read_state(path: Path, trust: bool = False) -> State:
    """All tensors of a file, or of the shards that an index names, by dotted names, from any nesting.

    Raises:
        MissingError: not a file of weights, or a damaged one. ConfigError: TorchScript without trust.
    """
    if kind_of(path) == "index":
        return read_shards(path)
    state: State = {}
    for name, tensor in nested_tensors(read_content(path, trust), path):
        name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if name in state:
            raise MissingError(f"{path} holds two tensors called {name!a}; save the one network anew")
        state[name] = tensor
    ensure_plausible(path, sum(tensor.nbytes for tensor in state.values()))
    return state


def read_shards(path: Path) -> State:
    """The tensors of all shards: those that the index names, each from the file that it names for it.

    Raises:
        MissingError: a shard lacks a tensor.
    """
    shards = {shard.name: read_state(shard) for shard in weight_files(path)}
    wanted = {name: shards[shard] for name, shard in weight_map(path).items()}
    if lacking := [name for name, shard in wanted.items() if name not in shard]:
        raise MissingError(f"{path}: {weight_map(path)[lacking[0]]} lacks {some(lacking)}")
    return {name: shard[name] for name, shard in wanted.items()}


def read_content(path: Path, trust: bool) -> Any:
    """What one file holds.

    Raises:
        MissingError: it cannot be read. ConfigError: TorchScript without trust, or a program.
    """
    kind = kind_of(path)
    if kind == "script" and not trust:
        raise ConfigError(f"{path} is a TorchScript archive; say prior.trust=true if you trust it")
    if kind == "export":
        raise ConfigError(f"{path} is an exported program: say prior=exported prior.weights={path} prior.trust=true")
    if is_zip(path):
        ensure_intact(path)
    try:
        if kind == "safetensors":
            return load_file(path)
        return load_script(path).state_dict() if kind == "script" else unpickled(path)
    except Exception as error:  # every library has its own
        raise MissingError(f"{path} cannot be read: {library_message(error)}. {ANEW}") from error


def load_script(path: Path) -> Any:
    """A TorchScript archive; torch's own warning that the format is old helps nobody here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(path, map_location="cpu")


# ---------------------------------------------------------------------------------------------- what torch.save wrote


class Reads(type):
    """torch's unpickler puts items into a `dict` alone; a stand-in says it is one, since its class may have been."""

    def __eq__(cls, other: object) -> bool:
        return other is dict or cls is other

    __hash__ = type.__hash__


class StandIn(list[Any], metaclass=Reads):
    """Takes the place of an object whose class is not torch's: it takes whatever is put into it and does nothing."""

    inner: dict[Any, Any]

    def __new__(cls, *_: Any) -> StandIn:
        made = super().__new__(cls)
        made.inner = {}
        return made

    def __init__(self, *_: Any) -> None:
        """Whatever its class was made with."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.inner[key] = value

    def __setstate__(self, state: Any) -> None:
        """Whatever it was made of."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def unpickled(path: Path) -> Any:
    """What torch.save wrote, by torch's unpickler of tensors alone, which looks up no class and calls no function.

    Objects of classes that it does not know (settings, dates, numpy numbers) become stand-ins, and one line says so.
    """
    stand_ins: list[Any] = [(Reads(name, (StandIn,), {}), name) for name in class_names(path)]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of another pickle protocol; if it cannot be read that is said
        return torch.load(path, "cpu", weights_only=True)


def class_names(path: Path) -> set[str]:
    """What a pickle would look up in modules, by its opcodes; nothing is looked up. Python 2's names are Python 3's."""
    if not is_zip(path):
        with path.open("rb") as file:
            return set(looked_up(file, LEGACY))
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        with archive.open(pickled) as member:
            return set(looked_up(member, 1))


def looked_up(file: IO[bytes], pickles: int) -> Iterator[str]:
    """`module.name` of each global in some pickles; torch itself says what is wrong with a damaged one."""
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
                    yield f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
    except Exception:  # an opcode that is none, a text that is no text
        return


def nested_tensors(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors inside nested mappings, such as {"epoch": 3, "model": {"module.conv1.weight": ...}}.

    Raises:
        MissingError: it nests without an end.
    """
    left_out: set[str] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(ITEMS):
        if not waiting:
            break
        names, item = waiting.pop()
        if isinstance(item, Tensor):
            yield ".".join(names), item
            continue
        if isinstance(item, StandIn):
            left_out.add(type(item).__name__)
            item = item.inner
        if isinstance(item, Mapping):
            waiting += [((*names, str(key)), value) for key, value in reversed([*item.items()])]
        if len(names) > DEPTH:
            raise MissingError(f"{path} nests more than {DEPTH} deep, perhaps in itself: it is no checkpoint")
    else:
        raise MissingError(f"{path} holds more than {ITEMS:,} items: it is no checkpoint")
    if left_out:
        warn(f"{path}: only tensors are read; left out are objects of {some(sorted(left_out))}")


def library_message(error: BaseException) -> str:
    """What a library has to say, on one line without escape codes; behind torch's page of advice is its own reason."""
    if str(error).startswith("Weights only load failed") and error.__context__:
        error = error.__context__
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip()
    return printable((text or type(error).__name__).splitlines()[0]).rstrip(". ")


def some(names: Sequence[str]) -> str:
    """A few names, and how many there are."""
    return few(names, KEYS_SHOWN) + (f" ({len(names)} in all)" if len(names) > KEYS_SHOWN else "")
