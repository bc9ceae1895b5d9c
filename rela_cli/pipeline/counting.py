"""The memory and the FLOPs of some work with a network, counted as its tensors come and go.

On torch's meta device tensors have shapes without numbers, so a batch of any size is counted to the byte in a second,
and no memory is touched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from rela_cli.pipeline.terms import Taken

SMALL_TENSOR = 32 * 2**20  # bytes; larger tensors have pages of their own, which go back to the system at once
FEW = (4, 8)  # images of two real steps, where a network cannot do without numbers
N = TypeVar("N", bound=nn.Module)


class HeldBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are there at a time, each storage once, and keeps the most of them."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.small = 0
        self.most = Taken(0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.take(value.untyped_storage())
        return result

    def take(self, storage: torch.UntypedStorage) -> None:
        """A storage is there, until nothing refers to it any more."""
        name, size = storage._cdata, storage.nbytes()
        if name in self.known:
            return
        self.known.add(name)
        self.add(size)
        weakref.finalize(storage, self.leave, name, size)

    def leave(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.add(size, -1)

    def add(self, size: int, sign: int = 1) -> None:
        self.now += sign * size
        self.small += sign * size if size <= SMALL_TENSOR else 0
        if self.now > self.most.peak:
            self.most = Taken(self.now, self.small)


def count_work(work: Callable[[], object], network: nn.Module) -> Taken:
    """The peak and the FLOPs of some work with a network, whose own weights do not count."""
    known = [*network.parameters(), *network.buffers()]
    # NT-Xent takes entries by a mask, whose count only numbers would tell; all of them is the most that it can be
    with (
        shapes.patch(meta_nonzero_assume_all_nonzero=True),  # type: ignore[attr-defined]
        FlopCounterMode(display=False) as flops,
        HeldBytes(known) as held,
    ):
        work()
    return replace(held.most, flops=float(flops.get_total_flops()))


def counted_for(images: int, work: Callable[[N, int, str], object], make: Callable[[], N]) -> Taken:
    """Memory and FLOPs of `work(network, images, device)`: on the meta device, or scaled up from two small passes."""
    network = make()
    try:
        network.to("meta")
        return count_work(lambda: work(network, images, "meta"), network)
    except Exception:  # whatever a network, perhaps the user's, does with numbers that are not there
        networks = [make() for _ in FEW]
        few, more = (count_work(partial(work, own, n, "cpu"), own) for own, n in zip(networks, FEW, strict=True))
        step = (images - FEW[0]) / (FEW[1] - FEW[0])
        pairs = ((few.peak, more.peak), (few.small, more.small), (few.flops, more.flops))
        return Taken(*(max(0.0, low + step * (high - low)) for low, high in pairs))
