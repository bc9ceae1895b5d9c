"""Images for a loop: taken from memory, or decoded from disk ahead of their use; the order is the caller's own.

Either kind of images has a length and gives some of its rows as (n, 3, S, S) uint8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from rela_cli.data.base import Dataset
from rela_cli.data.decoding.images import Pixels
from rela_cli.distributed import ranks
from rela_cli.machine.processors import cores
from rela_cli.numerics.randomness import permutation, stream_key

JOB = 16  # images that a thread decodes at a time, at most
BATCHES_AHEAD = 3  # batches that are being decoded while one is used
SAMPLE_IMAGES = 2000  # images that statistics and priors look at where not all are in memory
CPU = torch.device("cpu")
Pending = tuple[Tensor, "list[Future[None]]"]  # a batch, and what still has to be decoded into it


class DiskImages:
    """Images of a split that are decoded whenever they are asked for, by threads: Pillow works outside the lock.

    Row i is the sample `rows[i]` of the dataset's split; all are squares of the same `size`.
    """

    def __init__(self, dataset: Dataset, split: str, rows: Tensor, size: int) -> None:
        self.dataset, self.split, self.rows, self.size = dataset, split, rows, size
        self.pool = ThreadPoolExecutor(len(cores()))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """(n, 3, S, S) uint8.

        Raises:
            MissingError: naming the file that cannot be decoded.
        """
        return decoded_batch(self.start(rows))

    def start(self, rows: Tensor | slice) -> Pending:
        """Let threads decode some rows."""
        samples = self.rows[rows].numpy()
        shape = (len(samples), 3, self.size, self.size)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        pixels, image = batch.numpy(), self.dataset.prefetch(self.split, samples)
        return batch, [self.pool.submit(put_rows, pixels, image, rows) for rows in shared_out(len(samples))]


def shared_out(count: int) -> list[range]:
    """Rows of a batch for each job: few enough that all threads have some, enough that handing over costs nothing."""
    step = max(1, min(JOB, count // (4 * len(cores()))))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def put_rows(pixels: np.ndarray, image: Callable[[int], Pixels], rows: range) -> None:
    """Some images into their places in (B, 3, S, S)."""
    for i in rows:
        pixels[i] = image(i).transpose(2, 0, 1)


Images = Tensor | DiskImages  # (N, 3, S, S) uint8


def side_of(images: Images) -> int:
    """Pixels a side of what was decoded."""
    return images.size if isinstance(images, DiskImages) else images.shape[-1]


def decoded_batch(pending: Pending) -> Tensor:
    """A batch, once all of it is decoded."""
    batch, jobs = pending
    for job in jobs:
        job.result()
    return batch


def load(images: Images, batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch of rows (B,) with its images (B, 3, S, S) uint8, both on `device`."""
    if isinstance(images, Tensor) and images.device.type == "cuda":
        for rows in sent_together(list(batches), device):
            yield rows, images[rows]
    elif isinstance(images, Tensor):
        for batch in batches:
            yield sent(batch, device), sent(images[batch], device)
    else:
        for batch, pending in ahead(images, batches):
            yield sent(batch, device), decoded_batch(pending).to(device, non_blocking=True)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; the host does not wait for a copy out of pinned memory."""
    if device.type == "cpu" or tensor.device.type == device.type:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def sent_together(batches: list[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """All batches (B,) of rows on the device, by one copy."""
    return sent(torch.cat(batches), device).split([len(batch) for batch in batches]) if batches else ()


def ahead(images: DiskImages, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Pending]]:
    """Batches in order, each with those that follow it already under way; what nobody waits for is called off."""
    waiting: deque[tuple[Tensor, Pending]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, images.start(batch)))
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, (_, jobs) in waiting:
            for job in jobs:
                job.cancel()


def in_blocks(
    compute: Callable[[Tensor], Tensor],
    images: Images,
    block_size: int,
    device: torch.device,
    first: int = 0,
    place: torch.device = CPU,
) -> Iterator[Tensor]:
    """`compute` over blocks of exactly `block_size` images, the last one padded; results on `place`, in order.

    From block `first` on.
    """
    return in_numbered_blocks(lambda block, _: compute(block), images, block_size, device, first, place)


def in_numbered_blocks(
    compute: Callable[[Tensor, Tensor], Tensor],
    images: Images,
    block_size: int,
    device: torch.device,
    first: int = 0,
    place: torch.device = CPU,
) -> Iterator[Tensor]:
    """As `in_blocks`, where `compute(images, numbers)` has to know which images a block holds.

    Borders depend on the data alone, so a restart or another machine layout gives the same bits. With several ranks,
    rank r computes blocks r, r + world, ...; every rank receives all results.
    """
    blocks = torch.arange(len(images)).split(block_size)[first:]
    rounds = -(-len(blocks) // ranks.world())
    own = blocks[ranks.rank() :: ranks.world()]
    spare = [torch.tensor([0])] * (rounds - len(own))  # without a block left a rank still takes part in the round
    under_way: deque[Callable[[], Tensor]] = deque()
    for number, (rows, block) in enumerate(load(images, [*own, *spare], device)):
        with torch.inference_mode():
            found = compute(padded(block, block_size), padded(rows, block_size))
            result = found[: len(rows) if number < len(own) else 0]
        before = len(under_way)  # those that a GPU has computed while this block was launched
        under_way += [sent_off(part, place) for part in ranks.gather_rows(result, block_size) if len(part)]
        for _ in range(before if device.type == "cuda" else len(under_way)):
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


def sent_off(part: Tensor, place: torch.device) -> Callable[[], Tensor]:
    """A result on its way to `place`; calling what this gives waits for it. A GPU goes on meanwhile."""
    if part.device.type != "cuda" or place.type != "cpu":
        moved = part.to(place)
        return lambda: moved
    here, has_come = torch.empty(part.shape, dtype=part.dtype).pin_memory(), torch.cuda.Event()
    here.copy_(part, non_blocking=True)
    has_come.record()

    def arrived() -> Tensor:
        has_come.synchronize()
        return here

    return arrived


def padded(block: Tensor, size: int) -> Tensor:
    """A block of exactly `size` images, or their numbers, the last one repeated."""
    return torch.cat((block, block[-1:].expand(size - len(block), *block.shape[1:]))) if len(block) < size else block


def centre(images: Tensor, size: int) -> Tensor:
    """The clean view: the middle S x S of (B, 3, H, W); all of it where images are no larger than they are shown."""
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def sample_of(images: Images) -> Tensor:
    """All images where they are in memory, else the same 2,000 of them each time: (n, 3, S, S) uint8."""
    if isinstance(images, Tensor):
        return images
    return images[sample_rows(len(images))]


def sample_rows(count: int) -> Tensor:
    """Which 2,000 of `count` images those are, in order; all where there are fewer."""
    return permutation(stream_key(0, "sample"), count)[:SAMPLE_IMAGES].sort().values
