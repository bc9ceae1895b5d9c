"""A GPU that is not there: tensors that say `cuda`, have shapes and no numbers, and count what would be launched.

torch's FakeTensorMode runs the device code of a training step without a driver. It finds tensors on two devices that
meet, and every place where the host would wait for a number. It knows nothing of kernels, their numbers or their
speed. The backward pass of such tensors needs a driver; for that, `Counted` counts on CPU tensors just as well.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that launch nothing: they look at memory in another way, or ask for some.
FREE_NAMES = """view _unsafe_view expand permute transpose t slice select unsqueeze squeeze as_strided unbind split
split_with_sizes chunk detach alias diagonal narrow unfold reshape _reshape_alias expand_as view_as lift_fresh lift
is_pinned _pin_memory pin_memory sym_size sym_stride empty empty_like empty_strided new_empty new_empty_strided device
dim numel layout size stride sym_numel storage_offset is_contiguous set_ is_same_size _version resize_"""
FREE = frozenset(FREE_NAMES.split())
READS = frozenset(
    ("nonzero", "_local_scalar_dense", "item", "masked_select", "unique2", "_unique2", "equal", "is_nonzero")
)
MEMORY_BYTES = 10**11  # bytes that the GPU which is not there would have
COPY_OPERATORS = frozenset(("_to_copy", "copy_", "to"))
TRACED_PATHS = ("/rela_cli/", "/lightly/")


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Inside, `device="cuda"` works on any machine; weights have no values, and copies of networks can be made."""
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment, method-assign]
    with (
        mock.patch.object(nn.Module, "_apply", moved),
        mock.patch.object(FakeTensor, "__deepcopy__", copied, create=True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch.object(Tensor, "pin_memory", lambda self, device=None: self),
        mock.patch("torch.cuda.mem_get_info", lambda device=None: (MEMORY_BYTES, MEMORY_BYTES)),
        mock.patch("torch.cuda.Event", mock.MagicMock),
        mock.patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode


def moved(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply for weights without values; torch's own puts new values into the old tensors."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for name, weight in self._parameters.items():
        if weight is not None:
            with torch.no_grad():
                self._parameters[name] = nn.Parameter(fn(weight), weight.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def copied(self: Tensor, memory: dict[int, Any]) -> Tensor:
    """copy.deepcopy of a tensor without values."""
    if id(self) not in memory:
        new = self.detach().clone()
        memory[id(self)] = nn.Parameter(new, self.requires_grad) if isinstance(self, nn.Parameter) else new
    return memory[id(self)]  # type: ignore[no-any-return]


class Counted(TorchDispatchMode):
    """Counts the operators that launch at least one kernel, and notes where the host waits for the device.

    On tensors without values a read of a number ends the work.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device, self.operators, self.waits = device, Counter[str](), list[str]()

    @property
    def total(self) -> int:
        """All operators."""
        return self.operators.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in trees.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.is_here(given):
            self.note_reads(name, given, args)
        if name.startswith("_fused_"):  # in place, and torch does not know them without values
            self.operators[name] += 1
            return None
        result = func(*args, **kwargs)
        made = [leaf for leaf in trees.tree_leaves(result) if isinstance(leaf, Tensor)]
        if self.is_here(given) or self.is_here(made):
            if name not in FREE:
                self.operators[name] += 1
            self.note_copies(name, given, made, args, kwargs)
        return result

    def is_here(self, tensors: list[Tensor]) -> bool:
        """Whether one of them is on the device."""
        return any(tensor.device.type == self.device for tensor in tensors)

    def note_copies(self, name: str, given: list[Tensor], made: list[Tensor], args: Any, kwargs: Any) -> None:
        """Copies between devices that are waited for."""
        if name in COPY_OPERATORS and len({tensor.device.type for tensor in (*given, *made)}) > 1:
            target = given[0] if name == "copy_" else made[0]
            free = bool(kwargs.get("non_blocking")) or (name == "copy_" and len(args) > 2 and args[2])
            if not (free and target.device.type == self.device):
                self.waits.append(f"copy of {tuple(target.shape)} to {target.device.type} at {code_place()}")

    def note_reads(self, name: str, given: list[Tensor], args: Any) -> None:
        """Numbers that the host asks for, and indices that only the host can make sense of."""
        if name in READS:
            self.waits.append(f"{name} at {code_place()}")
        if name in ("index", "index_put_", "_index_put_impl_"):
            indices = [leaf for leaf in trees.tree_leaves(args[1]) if isinstance(leaf, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.waits.append(f"index by a mask at {code_place()}")
            if any(index.device != given[0].device for index in indices):
                self.waits.append(f"index on another device at {code_place()}")


def code_place() -> str:
    """Where in rela, or in a library of methods, the present operator comes from: `data/batches/views.py:67`."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for home in TRACED_PATHS:
            if home in name and not name.endswith("fake_gpu.py"):
                return f"{name.partition(home)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"
