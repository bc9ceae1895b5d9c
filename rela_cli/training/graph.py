"""The long part of a step as one CUDA graph (runtime.step): views, forward and backward pass, linear probe.

A graph is launched as one, with the addresses that its kernels were recorded with. So what goes in is copied into
tensors that stay (`Given`), and what changes on the host from step to step, such as the learning rate, stays outside:
optimizer, target network, switch and reads go on as ever. These are a tenth of a step's operators.

A graph replaces the same step only after it has been seen to do the same: the first replays are compared with the step
operator by operator, whose numbers count. What cannot be recorded is said on one line, and the training goes on.
Whether a graph is tried at all is for `graph_trial` to say, unless the user does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from rela_cli.config.schema import Config, Part
from rela_cli.data.batches.views import Place
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError, first_line
from rela_cli.machine.device import synchronize
from rela_cli.machine.memory import free_unused
from rela_cli.machine.precision import tf32
from rela_cli.store.notices import warn

if TYPE_CHECKING:
    from rela_cli.training.trainer import Trainer

Recorder = Callable[
    [Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]
]  # work -> its result, and what repeats it

WARM_STEPS = 3  # that a device chooses its kernels and makes its workspaces in
COMPARED_STEPS = 2  # the second has other images than those that were recorded
TOLERANCE = 0.01  # of the loss and of the gradient's norm: kernels that add up in any order differ by less


@dataclass(frozen=True)
class Given:
    """All that a step takes from outside, so that the rest of it is a function of this and of what is on the device."""

    images: Tensor  # (B, 3, H, W) uint8
    draws: Sequence[Tensor]  # the random numbers of each view
    places: Sequence[Place]  # where views are cut, instead of by random numbers
    targets: Any  # of phase 1: (B, k), or one a view; with those of their cells
    labels: Tensor | None  # (B,), of methods that use them, and of the linear probe


@dataclass
class Captured:
    """A recorded step: the tensors that it reads, those that it leaves, and what repeats it."""

    given: list[Tensor]
    loss: Tensor
    gradients: list[Tensor | None]
    replay: Callable[[], None]
    compared: int = 0


class GraphedStep:
    """Takes steps by a graph for each kind of step: one a phase, batch size and branch of the method."""

    def __init__(self, loop: Trainer, record: Recorder) -> None:
        self.loop, self.record = loop, record
        self.captured: dict[object, Captured] = {}
        self.warm: dict[object, int] = {}
        self.matched: list[object] = []  # kinds whose compared replays were the step itself
        self.why_off = ""

    @property
    def is_off(self) -> bool:
        """Whether it has been given up."""
        return bool(self.why_off)

    def __call__(self, rows: Tensor, images: Tensor, epoch: int) -> Tensor:
        """Leave the gradients of a batch where the optimizer finds them; its loss."""
        given = given_of(self.loop, rows, images, epoch)
        flat, layout = trees.tree_flatten(vars(given))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        kind = (self.loop.position.phase, self.loop.trainee.method.branch(), shapes)
        if kind not in self.warm:
            self.warm[kind] = 0
            self.captured = {}  # of a kind that will not come again, most likely; its memory is needed
        if not self.is_off and kind not in self.captured and self.warm[kind] >= WARM_STEPS:
            self.capture(kind, flat, layout)
        if self.is_off or kind not in self.captured:
            self.warm[kind] += 1
            return take(self.loop, given)
        if self.captured[kind].compared < COMPARED_STEPS:
            return self.compare(kind, tensors, given)
        return self.repeat(self.captured[kind], tensors)

    def capture(self, kind: object, flat: list[Any], layout: Any) -> None:
        """Record the step on copies of what it was given; nothing is computed by that."""
        stays = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
        given = Given(**trees.tree_unflatten(stays, layout))
        self.captured = {}
        try:
            self.loop.optimizer.zero_grad(set_to_none=True)
            loss, replay = self.record(lambda: take(self.loop, given))
            gradients = [weight.grad for weight in self.loop.trainable]
        except Exception as error:  # of the driver, or of what cannot be recorded
            self.give_up(f"the step cannot be recorded ({type(error).__name__}: {first_line(error)})")
        else:
            tensors = [leaf for leaf in stays if isinstance(leaf, Tensor)]
            self.captured[kind] = Captured(tensors, loss, gradients, replay)
        self.loop.optimizer.zero_grad(set_to_none=True)
        if self.is_off:
            self.recover()

    def repeat(self, step: Captured, tensors: Sequence[Tensor]) -> Tensor:
        """Take a step by its graph."""
        for stays, tensor in zip(step.given, tensors, strict=True):
            stays.copy_(tensor, non_blocking=True)
        step.replay()
        for weight, gradient in zip(self.loop.trainable, step.gradients, strict=True):
            weight.grad = gradient
        return step.loss.clone()  # the next step writes over it before the host has read it

    def compare(self, kind: object, tensors: Sequence[Tensor], given: Given) -> Tensor:
        """Take a step both ways; the one operator by operator counts. It waits for the device."""
        put_back: Callable[[], None] | None = None
        try:
            put_back = noted(self.loop)
            loss, found, expected = self.both(self.captured[kind], tensors, given, put_back)
        except RuntimeError as error:  # of the driver, or no memory for both ways at once
            self.give_up(f"a replay cannot be compared with the step ({type(error).__name__}: {first_line(error)})")
        else:
            self.judge(kind, found, expected)
            return loss
        self.loop.optimizer.zero_grad(set_to_none=True)  # which may be the graph's
        self.recover(put_back)
        return take(self.loop, given)

    def both(
        self, step: Captured, tensors: Sequence[Tensor], given: Given, put_back: Callable[[], None]
    ) -> tuple[Tensor, list[float], list[float]]:
        """The loss of the step operator by operator; loss and gradient norm by the graph, and by operators."""
        by_graph = [self.repeat(step, tensors).clone(), norm(step.gradients)]
        put_back()
        self.loop.optimizer.zero_grad(set_to_none=True)
        loss = take(self.loop, given)
        own = [loss, norm([weight.grad for weight in self.loop.trainable])]
        found, expected = torch.stack([*by_graph, *own]).view(2, 2).tolist()
        return loss, found, expected

    def judge(self, kind: object, found: Sequence[float], expected: Sequence[float]) -> None:
        """Go on with a graph whose loss and gradient norm are the step's, and with no other."""
        step = self.captured[kind]
        step.compared += 1
        if not all(abs(a - b) <= TOLERANCE * abs(b) for a, b in zip(found, expected, strict=True)):  # NaN is no match
            told = "loss and gradient norm {:.6g} and {:.6g}"
            self.give_up(f"a replay gives {told.format(*found)}, the step itself {told.format(*expected)}")
        elif step.compared == COMPARED_STEPS:
            self.matched.append(kind)
            at = self.loop.position
            warn(f"from step {at.step + 1} on, views, forward and backward pass of phase {at.phase} are one CUDA graph")
            free_unused()  # what steps operator by operator have used

    def recover(self, put_back: Callable[[], None] | None = None) -> None:
        """After an error, when nothing holds it or what its frames had made: see that the device still works.

        Raises:
            RelaError: it does not; the training that is saved can be taken up without a graph.
        """
        try:
            if put_back:
                put_back()
            free_unused()
            synchronize(self.loop.device)
        except RuntimeError as error:
            way_out = "the same command with runtime.step=eager goes on from the last checkpoint"
            raise RelaError(f"the GPU answers nothing more after that ({first_line(error)}): {way_out}") from error

    def give_up(self, why: str) -> None:
        """Take this and all later steps operator by operator, and say so."""
        self.why_off, self.captured = why, {}
        warn(f"runtime.step=graph: {why}. Steps are taken operator by operator, as by runtime.step=eager")


def given_of(loop: Trainer, rows: Tensor, images: Tensor, epoch: int) -> Given:
    """All that depends on the epoch, on the samples and on what lies on the host: of samples `rows` (B,)."""
    phase = loop.position.phase
    labels = loop.labels[rows] if loop.labels is not None else None
    draws, places = loop.views[phase].draws(rows, epoch), loop.places_of(rows, epoch)
    return Given(images, list(draws), list(places), loop.targets_of((), rows, epoch), labels)


def take(loop: Trainer, given: Given) -> Tensor:
    """Views, forward and backward pass, linear probe; the loss."""
    views = loop.views[loop.position.phase].drawn(given.images, given.draws, given.places)
    labels = given.labels if loop.trainee.method.uses_labels else None
    with tf32(loop.is_tf32), loop.listening() as found:
        loss = loop.loss_with(views, given.targets, labels)
        loss.backward()  # type: ignore[no-untyped-call]
    if loop.linear and given.labels is not None:
        loop.linear.learn(found, given.labels)
    return loss.detach()


def norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Of all gradients as one vector."""
    return torch.stack(torch._foreach_norm([g for g in gradients if g is not None])).float().norm()


def noted(loop: Trainer) -> Callable[[], None]:
    """What puts back all that a step writes besides gradients: buffers, the linear probe, the random generator."""
    probe = [loop.linear.head, loop.linear.memory, loop.linear.tally] if loop.linear else []
    written = [*loop.trainee.buffers(), *probe]
    before = [tensor.clone() for tensor in written]
    is_gpu = loop.device.type == "cuda"
    random = torch.cuda.get_rng_state(loop.device) if is_gpu else torch.get_rng_state()

    def put_back() -> None:
        for tensor, value in zip(written, before, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(random, loop.device) if is_gpu else torch.set_rng_state(random)

    return put_back


def by_cuda_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record work as a CUDA graph."""
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            result = work()
    except BaseException:  # then torch leaves its stream, which the outer `stream` mends, and its generator recording
        generator.graphsafe_set_state(before)
        raise
    return result, graph.replay


def graphed_step(loop: Trainer) -> GraphedStep | None:
    """What takes the steps of a training, where the config asks for it; None: steps are taken operator by operator."""
    if loop.config.runtime.step != "graph":
        return None
    if why := hindrance(loop.config, loop.device):
        warn(f"runtime.step=graph has no effect: {why}. Steps are taken operator by operator")
        return None
    return GraphedStep(loop, by_cuda_graph)


def hindrance(config: Config, device: torch.device) -> str:
    """Why steps of a training are not recorded; empty where they are."""
    reasons = {
        "there is no GPU here": device.type != "cuda",
        "several GPUs train the run": ranks.world() > 1,
        "a batch is taken in parts (accumulate)": config.accumulate > 1,
        "networks are compiled (runtime.compile)": config.runtime.compile != "off",
        "targets are live, and a prior may compute on the host": config.is_live,
        f"method={config.method.name} is not rela's own, and may read on the host": not is_ours(config.method),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def is_ours(part: Part) -> bool:
    """Whether the class of a part comes from this package."""
    return not part.foreign([__name__.partition(".")[0]])
