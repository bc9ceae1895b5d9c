"""Several processes that train one run: which rank this is, and what ranks exchange.

`rela` itself (launch/rank_processes.py) or torchrun starts them and tells each its number, its rank, by environment
variables. With one process everything here returns what it is given. Rank 0 alone writes files, holds locks and
prints. When a rank dies, whoever started the ranks ends the others. Importing this does not import torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rela_cli.distributed.pulse import waiting, watched_by_themselves
from rela_cli.errors import RelaError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


LOST = ("Connection closed", "Connection reset", "Broken pipe", "Socket", "NCCL", "gloo")  # how a dead rank shows

MEETING = "RELA_MEETING"  # names the file by which processes that rela has started find each other

PATIENCE = timedelta(days=7)  # rank 0 may decode a large dataset, or wait for another process that does

T = TypeVar("T")


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine it is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def norm_groups(norm: Any, devices: int) -> int:
    """How many groups of a batch `runtime.norm` gives batch statistics of their own: global, node, local or a number.

    `devices` are the processes that are yet to be started.
    """
    nodes = world() // int(os.environ.get("LOCAL_WORLD_SIZE", world()))
    return {"global": 1, "node": max(1, nodes), "local": max(devices, world())}.get(norm) or int(norm)


def is_first() -> bool:
    """Whether this is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def process_group(device: str, hang_minutes: int = 30, warn: Callable[[str], object] = print) -> Iterator[None]:
    """The process group around the work inside: NCCL between GPUs, and gloo for tensors on the CPU.

    Where nobody else looks whether ranks hang in training for `hang_minutes`, they do so themselves, and `warn` before.

    Raises:
        RelaError: another rank is gone.
    """
    if world() == 1:
        yield
        return
    import torch
    from torch import distributed

    use_gpu = device != "cpu" and torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    with waiting():
        store = meeting_place()
        distributed.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=PATIENCE)
    limit = 60.0 * hang_minutes
    by_rela = MEETING in os.environ  # which looks itself
    try:
        with nullcontext() if by_rela else watched_by_themselves(store, rank(), world(), warn, limit):
            yield
    except RuntimeError as error:
        if any(word in str(error) for word in LOST):
            raise RelaError(f"lost touch with another process of this run ({first_line(error)})") from error
        raise
    _communicators.clear()
    distributed.destroy_process_group()  # not after an error: it would wait for those that are gone


# ------------------------------------------------------------------------------------------------- values of the host


def meeting_place() -> Any:
    """Where ranks find each other: a file that rela names, else the store that torchrun has opened.

    torchrun keeps its store over a restart, with the addresses of the dead: so, a prefix.
    """
    from torch._C._distributed_c10d import FileStore, PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if path := os.environ.get(MEETING):
        store = FileStore(path, world())
        store.set_timeout(PATIENCE)
        return store
    store, _, _ = next(rendezvous("env://", rank(), world(), timeout=PATIENCE))
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def rank_0_first(work: Callable[[], T]) -> T:
    """Rank 0 does the work first, then the others, who find what it has written."""
    if is_first():
        result = work()
        agree(None)
        return result
    agree(None)
    return work()


def agree(value: T) -> T:
    """Rank 0's value, on every rank; it travels as JSON. So one rank alone looks at what is on disk."""
    return broadcast_from(0, value)


def gather_objects(value: T) -> list[T]:
    """Each rank's value, in the order of ranks, on every rank; values travel as JSON."""
    return [broadcast_from(number, value) for number in range(world())]


@waiting()
def broadcast_from(source: int, value: T) -> T:
    """One rank's value, on every rank."""
    if world() == 1:
        return value
    import torch
    from torch import distributed

    text = json.dumps(value).encode()
    size = torch.tensor([len(text)])
    distributed.broadcast(size, src=source)
    content = torch.frombuffer(bytearray(text.ljust(int(size))[: int(size)]), dtype=torch.uint8)
    distributed.broadcast(content, src=source)
    return json.loads(bytes(content.tolist()))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------------- tensors


@waiting()
def mean_over(value: Tensor, group: Any = None) -> Tensor:
    """The mean of each rank's `value`, or of those of a group, without gradient."""
    if world() == 1:
        return value
    from torch import distributed

    value = value.clone()
    distributed.all_reduce(value, group=group)
    return value / distributed.get_world_size(group)


def sum_over(value: Tensor) -> Tensor:
    """The sum of each rank's `value`, without gradient."""
    return mean_over(value) * world()


@waiting()
def gather_rows(rows: Tensor, count: int) -> list[Tensor]:
    """The rows (n, D) of each rank, one tensor a rank. n may differ between ranks; it is at most `count`."""
    if world() == 1:
        return [rows]
    import torch

    lengths = gathered_rows(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = torch.cat((rows, rows.new_zeros(count - len(rows), *rows.shape[1:])))
    parts = gathered_rows(padded).chunk(world())
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def gathered_rows(rows: Tensor, group: Any = None) -> Tensor:
    """The equally many rows (n, ...) of each of R ranks, one below the other: (R n, ...), without gradient."""
    from torch import distributed

    every = rows.new_empty(distributed.get_world_size(group) * len(rows), *rows.shape[1:])
    # torch 2.14 has another name for it
    gather: Any = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    gather(every, rows.contiguous(), group=group)
    return every


_communicators: dict[int, Any] = {}  # of batch norms, by the number of groups


def communicator(groups: int) -> Any:
    """A communicator of their own for the ranks of this rank's group; all ranks make it at its first use.

    What batch norms exchange does not wait behind gradients then. On the CPU one group has the one that is there.
    """
    import torch
    from torch import distributed

    if groups == 1 and not torch.cuda.is_available():
        return None
    if groups not in _communicators:
        size = world() // groups
        made = [distributed.new_group(range(i * size, (i + 1) * size), timeout=PATIENCE) for i in range(groups)]
        _communicators[groups] = made[rank() // size]
    return _communicators[groups]


@waiting()
def broadcast_parameters(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if world() == 1:
        return
    from torch import distributed

    for tensor in module.state_dict().values():
        distributed.broadcast(tensor, src=0)


@waiting()
def data_parallel(module: nn.Module, has_idle: bool, hook: str = "none") -> nn.Module:
    """The module with the mean of all ranks' gradients; `has_idle` says that not all parameters get one each time.

    With `hook` bf16 each rank's gradients are rounded to 16 bits, and so is their mean: half of the bytes are sent.
    """
    from inspect import signature

    from torch.nn.parallel import DistributedDataParallel

    new = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # torch 2.14 has another name for it
    quiet: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    made = DistributedDataParallel(module, find_unused_parameters=has_idle, gradient_as_bucket_view=True, **quiet)
    if hook == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        made.register_comm_hook(None, bf16_compress_hook)
    return made


def share(batch: Tensor) -> Tensor:
    """This rank's part of a batch (B,): the parts are equal and follow each other, so together they are the batch."""
    size = len(batch) // world()
    return batch[rank() * size : (rank() + 1) * size]


def own_device(kind: str) -> torch.device:
    """This rank's own GPU, or the CPU."""
    import torch

    return torch.device(kind, local_rank()) if kind == "cuda" and world() > 1 else torch.device(kind)
