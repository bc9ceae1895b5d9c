"""What a run has spent: seconds, images, operations and time spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from rela_cli.store.files import Facts
from rela_cli.training.linear_probe import LinearProbe

NOTE_SECONDS = 1.0  # how often the progress line reads the loss, which waits for the device


class Meter:
    """Means since the last record; losses stay on the device until somebody reads them."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.waited = 0.0  # seconds for batches and their views
        self.started, self.noted, self.note = time.perf_counter(), 0.0, ""

    def add(self, loss: Tensor) -> None:
        """Take in the loss of a step."""
        self.losses.append(loss)

    def waiting(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass the batches on, and add up the seconds spent waiting for each of them."""
        started = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def words(self, phase: str, linear: LinearProbe | None = None) -> str:
        """For the progress line; read anew once a second."""
        now = time.perf_counter()
        if now - self.noted > NOTE_SECONDS:
            rate = len(self.losses) * self.batch_size / (now - self.started)
            probe = f", linear {100 * linear.accuracy():.0f} %" if linear else ""
            self.noted, self.note = now, f"{phase}, loss {self.losses[-1].item():.4f}{probe}, {rate:.0f} images/s"
        return self.note

    def read(self) -> Facts:
        """Mean loss, images per second, and the share of the time that went into waiting for views."""
        loss = torch.stack(self.losses).mean().item()
        seconds = time.perf_counter() - self.started
        rate = len(self.losses) * self.batch_size / seconds
        return {"loss": loss, "images_per_second": round(rate, 1), "data_wait": round(self.waited / seconds, 4)}

    def state(self) -> Facts:
        """What the next record needs of the steps so far."""
        losses = torch.stack(self.losses) if self.losses else torch.empty(0)
        return {"losses": losses, "waited": self.waited, "seconds": time.perf_counter() - self.started}

    def load_state(self, state: Facts, device: torch.device) -> None:
        """Go on where another meter stood."""
        self.losses = list(state["losses"].to(device).unbind())
        self.waited, self.started = state["waited"], time.perf_counter() - state["seconds"]
