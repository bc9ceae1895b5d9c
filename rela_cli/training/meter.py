"""What a run has spent: seconds, images, operations and time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from rela_cli.store.files import Facts
from rela_cli.training.linear_probe import LinearProbe

NOTE_SECONDS = 1.0  # how often the progress line is written anew


class Meter:
    """Means since the last record, of the losses that the host has read."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.note = ""
        self.restart()

    def restart(self) -> None:
        self.steps, self.losses = 0, list[Tensor]()  # since the last record; (n,) of each read
        self.waited = 0.0  # seconds for batches and their views
        self.started, self.noted = time.perf_counter(), 0.0

    def add(self, losses: Tensor) -> None:
        """Take in what the host has read, (n,)."""
        if len(losses):
            self.losses.append(losses)

    def waiting(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass the batches on, and add up the seconds spent waiting for each of them."""
        started = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def words(self, phase: str, linear: LinearProbe | None = None) -> str:
        """For the progress line; renewed once a second, if the host has read a loss since the last record."""
        now = time.perf_counter()
        if self.losses and now - self.noted > NOTE_SECONDS:
            rate = self.steps * self.batch_size / (now - self.started)
            probe = f", linear {100 * linear.accuracy():.0f} %" if linear else ""
            loss = self.losses[-1][-1].item()
            self.noted, self.note = now, f"{phase}, loss {loss:.4f}{probe}, {rate:.0f} images/s"
        return self.note

    def read(self) -> Facts:
        """Mean loss, images per second, and the share of the time that went into waiting for views."""
        loss = torch.cat(self.losses).mean().item()
        seconds = time.perf_counter() - self.started
        rate = self.steps * self.batch_size / seconds
        return {"loss": loss, "images_per_second": round(rate, 1), "data_wait": round(self.waited / seconds, 4)}

    def state(self) -> Facts:
        """What the next record needs of the steps so far."""
        losses = torch.cat(self.losses) if self.losses else torch.empty(0)
        return {"losses": losses, "waited": self.waited, "seconds": time.perf_counter() - self.started}

    def load_state(self, state: Facts) -> None:
        """Go on where another meter stood."""
        self.losses, self.steps = [], len(state["losses"])
        self.add(state["losses"])
        self.waited, self.started = state["waited"], time.perf_counter() - state["seconds"]
