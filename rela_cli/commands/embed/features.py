"""The features of many files, block by block into a file that a later call goes on with; then in the format asked for.

.NAME.part/     beside the file that is made
  rows.safetensors, .rows.blocks     features (N, D) fp32, NaN where a file cannot be read; the journal of blocks
  unreadable.jsonl                   why files cannot be read
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from rela_cli.commands.embed.files import Embedding, FeatureBlock
from rela_cli.commands.embed.images import Files
from rela_cli.commands.embed.network import ReadyPrior
from rela_cli.config.runtime import Runtime
from rela_cli.data.batches.loader import DiskImages
from rela_cli.machine.signals import stoppable
from rela_cli.stages.extract import run_prior
from rela_cli.store.blocks import KeptWriter
from rela_cli.store.disk import ensure_room
from rela_cli.store.files import Facts, size_of
from rela_cli.store.row_file import RowFile

FLOAT32_BYTES = 4  # bytes of a feature
ROWS_AT_ONCE = 1024  # rows in memory while a format is written


class Features:
    """The features of files in a folder `part`, made or to be made."""

    def __init__(self, part: Path, paths: Sequence[str]) -> None:
        self.rows, self.notes, self.paths = part / "rows.safetensors", part / "unreadable.jsonl", paths

    def make(self, network: ReadyPrior, root: Path, runtime: Runtime, of: Facts) -> None:
        """Compute what is missing."""
        files = Files(root, self.paths, network.square)
        images = DiskImages(files, "files", torch.arange(len(self.paths)), network.square.side)
        circumstances = {"device": network.device.type, "threads": torch.get_num_threads()}
        count, total = len(self.paths), -(-len(self.paths) // runtime.block_size)
        ensure_room(self.rows, FLOAT32_BYTES * count * network.prior.feature_dim - size_of(self.rows))
        of = {**of, "block_size": runtime.block_size}
        with (
            KeptWriter(self.rows, "features", count, of, circumstances, torch.float32) as kept,
            stoppable(lambda: f"block {kept.blocks} of {total}"),
        ):
            if kept.blocks:
                print(f"  resumed at block {kept.blocks} of {total}", flush=True)
            for first, block in self.blocks(network, images, runtime, kept.blocks):
                bad = [row for row in range(first, first + len(block)) if row in files.unreadable]
                block[[row - first for row in bad]] = torch.nan
                self.note({row: files.unreadable.pop(row) for row in bad})
                kept.add(block)

    def blocks(
        self, network: ReadyPrior, images: DiskImages, runtime: Runtime, first: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Features from block `first` on, each with the row that it begins at."""
        size, title = runtime.block_size, "embed"
        found = run_prior(
            network.prior, images, network.square.crop, size, network.device, title, runtime.extract_precision, first
        )
        for number, block in enumerate(found, first):
            yield number * size, block.float().clone()

    def note(self, found: dict[int, str]) -> None:
        """Write down why rows are NaN, before their block counts as made."""
        if found:
            with self.notes.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"row": row, "why": why}) + "\n" for row, why in found.items())

    def unreadable(self) -> dict[str, str]:
        """The files whose rows are NaN, and why they cannot be read."""
        lines = self.notes.read_text(encoding="utf-8").splitlines() if self.notes.exists() else []
        why = {int(line["row"]): str(line["why"]) for line in map(json.loads, lines)}
        blocks = RowFile(self.rows, "features").blocks(ROWS_AT_ONCE)
        found = (number * ROWS_AT_ONCE + row for number, block in enumerate(blocks) for row in nan_rows(block.numpy()))
        return {self.paths[row]: why.get(row, "unknown") for row in found}

    def embedding(self, facts: Facts) -> Embedding:
        """All that can be read, as what the formats write."""
        rows = RowFile(self.rows, "features")
        return Embedding(lambda: self.readable(rows), len(rows) - len(self.unreadable()), rows.shape[1], facts)

    def readable(self, rows: RowFile) -> Iterator[FeatureBlock]:
        """Names and features of some files at a time, those that cannot be read left out."""
        for number, block in enumerate(rows.blocks(ROWS_AT_ONCE)):
            values = block.numpy()
            kept = np.setdiff1d(np.arange(len(values)), nan_rows(values))
            yield [self.paths[number * ROWS_AT_ONCE + int(row)] for row in kept], values[kept]


def nan_rows(values: np.ndarray) -> list[int]:
    """Rows of (n, D) that are NaN: their files cannot be read."""
    return [int(row) for row in np.flatnonzero(np.isnan(values[:, 0]))]
