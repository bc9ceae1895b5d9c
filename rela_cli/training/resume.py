"""Saves a training between two steps, and takes it up again at that step, to the same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor

from rela_cli.config.lengths import Lengths
from rela_cli.config.schema import Config
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError, Stopped
from rela_cli.learners.build import load_state
from rela_cli.machine.device import peak_memory, restart_peak_memory
from rela_cli.numerics.randomness import stream_key
from rela_cli.store.files import Facts
from rela_cli.switch import Switch
from rela_cli.training.checkpoint import Checkpoints, Saved
from rela_cli.training.linear_probe import LinearProbe
from rela_cli.training.logs import Trace
from rela_cli.training.meter import Meter
from rela_cli.training.readings import Readings
from rela_cli.training.trainee import Trainee


@dataclass
class Position:
    """Where the training is. A checkpoint holds these fields by their names."""

    step: int = 0  # the last step that was started, counted from 1
    phase: int = 1
    switch_step: int | None = None  # the first step of phase 2, once the switch has ended phase 1
    collapsed: bool | None = None  # None: nobody has looked


@dataclass
class Checkpointing:
    """Saves the training when it is time, stops it when a signal has come, and loads what was saved."""

    lengths: Lengths
    device: torch.device
    readings: Readings
    position: Position
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    switch: Switch | None
    linear: LinearProbe | None
    meter: Meter
    checkpoints: Checkpoints | None = None  # None: nothing is ever saved
    trace: Trace | None = None
    started: float = field(default_factory=time.perf_counter)  # of this process
    seconds: float = 0.0  # of those before it
    peak_before: int = 0  # bytes, the most that those took

    def begin(self, config: Config, checkpoints: Checkpoints, trace: Trace | None, saved: Saved | None) -> None:
        """Start the clocks; with something saved, go on from there.

        Raises:
            RelaError: what was saved does not fit this run.
        """
        self.checkpoints, self.trace, self.started = checkpoints, trace, time.perf_counter()
        self.meter.restart()
        restart_peak_memory(self.device)
        total = self.lengths.total_steps
        if saved and saved.step > total:
            raise RelaError(f"the checkpoint is of step {saved.step}, and this run has {total}")
        if saved:
            self.load_networks(config, saved.state)
            self.load_progress(config, saved.state)
        checkpoints.restart(self.position.step, self.position.phase)

    # --------------------------------------------------------------------------------- between two steps

    def save_or_stop(self, signals: Sequence[Stopped], read: Callable[[], None]) -> None:
        """Save if it is time, after `read` has found nothing wrong; if a signal has come, save and leave.

        Raises:
            Stopped: a signal has come, here or to another rank.
        """
        if self.checkpoints is None:
            return
        step, stops = self.position.step, self.should_stop(signals)
        is_last = step == self.lengths.total_steps
        if self.checkpoints.is_due(step, self.position.phase, is_last or stops):
            read()
            if ranks.is_first():
                self.checkpoints.save(step, self.position.phase, self.state())
        if stops:
            words = str(signals[0]).partition(";")[0] if signals else "stopped with the other ranks"
            code = signals[0].exit_code if signals else 143
            raise Stopped(
                f"{words}; the same command goes on from step {step} of {self.lengths.total_steps}", code - 128
            )

    def should_stop(self, signals: Sequence[Stopped]) -> bool:
        """Whether a signal has come. Several ranks say yes at the same step, the first at which all know of it."""
        if ranks.world() == 1:
            return bool(signals)
        step = self.position.step
        is_read = step % self.readings.every == 0 or step == self.lengths.total_steps
        return is_read and self.readings.last.stops

    def mean_over_ranks(self, loss: Tensor, signals: Sequence[Stopped]) -> Tensor:
        """The mean of the loss over all ranks. The same message tells them whether a signal has come to any of them."""
        if ranks.world() > 1:
            has_signal = loss.new_full((), float(bool(signals)))
            loss, stops = ranks.mean_over(torch.stack((loss, has_signal))).unbind()
            self.readings.stops.append(stops)
        return loss

    # ------------------------------------------------------------------------------------------ the state

    def state(self) -> Facts:
        """All that the steps to come depend on, and the records; the rest is a function of config, data and step."""
        if self.trace:
            self.trace.flush()
        return {
            "trainee": self.trainee.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],  # rates and the like are the config's
            "switch": None if self.switch is None else self.switch.state,
            **asdict(self.position),
            "traced": self.trace.written if self.trace else 0,
            "meter": self.meter.state(),
            "linear": self.linear.state() if self.linear else None,
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "seconds": self.seconds_so_far(),
            "peak_memory": self.peak_memory(),
        }

    def seconds_so_far(self) -> float:
        """Seconds of training, those of earlier processes included."""
        return self.seconds + time.perf_counter() - self.started

    def peak_memory(self) -> int:
        """Bytes, the most that any process of the run has taken."""
        return max(self.peak_before, peak_memory(self.device))

    def load_networks(self, config: Config, state: Facts) -> None:
        """Load the weights and the optimizer's memory.

        Raises:
            RelaError: they belong to another learner, method or optimizer.
        """
        try:
            load_state(self.trainee, state["trainee"])
            load_optimizer(self.optimizer, state["optimizer"])
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise RelaError(
                f"the checkpoint does not fit learner={config.learner.name}, method={config.method.name}, "
                f"optimizer={config.optimizer.name}: {str(error).strip().splitlines()[-1].strip().rstrip('.')}. "
                f"resume=never starts again"
            ) from error

    def load_progress(self, config: Config, state: Facts) -> None:
        """Load the position, the switch, the records and torch's random generators."""
        for one in fields(Position):
            setattr(self.position, one.name, state[one.name])
        self.trainee.method.progress = self.position.step / self.lengths.total_steps
        if self.switch is not None and state["switch"] is not None:
            self.switch.state = state["switch"].to(self.device)
        if self.trace:
            self.trace.written = state["traced"]
        self.meter.load_state(state["meter"])
        if self.linear and state.get("linear"):  # a checkpoint of before there was one has none
            self.linear.load_state(state["linear"])
        self.seconds, self.peak_before = state["seconds"], state.get("peak_memory", 0)
        if not ranks.is_first():
            torch.manual_seed(rank_seed(config, self.position.step))
            return
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_gpu"] is not None:
            torch.cuda.set_rng_state(state["random_gpu"], self.device)


def load_optimizer(optimizer: torch.optim.Optimizer, memory: Facts) -> None:
    """Load its memory, each tensor laid out as its parameter: fused updates walk both in memory's order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in memory.items():
        parameter = parameters[int(number)]
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {int(k): v for k, v in memory.items()}, "param_groups": groups})


def rank_seed(config: Config, step: int) -> int:
    """The seed of this rank's own draws, such as dropout; rank 0 needs no step: a checkpoint holds its state."""
    return stream_key(config.seed, "train", *([] if ranks.is_first() else [ranks.rank(), step]))
