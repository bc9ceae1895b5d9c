"""Work on tensors that say `cuda` and have no values: what it launches, and where the host waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from rela_cli.machine.fake_gpu import Counted, fake_cuda

GPU = torch.device("cuda")


NUMBERS = frozenset(("_local_scalar_dense", "item", "is_nonzero"))  # reads that give one number


class Told(Counted):
    """Counts, and goes on where the host asks for a number: it is told `number`, or `truth`."""

    def __init__(self, number: float, truth: bool) -> None:
        super().__init__()
        self.number, self.truth = number, truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NUMBERS or not isinstance(args[0], FakeTensor):
            return super().__torch_dispatch__(func, types, args, kwargs)
        asked = args[0]
        if self.is_here([asked]):
            self.note_reads(name, [asked], args)
        if asked.dtype is torch.bool:
            return self.truth
        return self.number if asked.is_floating_point() else int(self.number)


def counted(work: Callable[[], Any], number: float = 0.0, truth: bool = False) -> Counted:
    """What `work` does on a fake GPU; a host that reads a number or a truth value is told these."""
    with Told(number, truth) as found:
        work()
    return found


def with_values(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` on tensors of the host that have values, within a fake GPU."""

    @wraps(work)
    def done(*given: Any) -> Any:
        with unset_fake_temporarily():
            return work(*given)

    return done


@contextmanager
def fake_gpu_with_values_of(*places: tuple[Any, str]) -> Iterator[None]:
    """A fake GPU; the functions at `places` (module, name) choose by labels, so they work on real values."""
    with fake_cuda():
        patches = [mock.patch.object(module, name, with_values(getattr(module, name))) for module, name in places]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


@contextmanager
def gpu_code_on_cpu() -> Iterator[None]:
    """Code that asks a tensor whether it is on a GPU is told so: its way for a GPU, with numbers of the CPU."""
    with mock.patch.object(Tensor, "is_cuda", property(lambda self: True)):
        yield
