"""Batch norms of several views and of groups, in one process, and how many messages a step takes on eight ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from rela_cli.config.schema import Config
from rela_cli.config.without_effect import of_norm
from rela_cli.distributed import batch_norm, ranks
from rela_cli.errors import ConfigError
from rela_cli.pipeline.run import Run
from tests.factories import config, trainer

WORLD = 8
SENT = ("all_reduce", "broadcast", *(("all_gather_single",) if hasattr(distributed, "all_gather_single") else ()))


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """This process is one of eight, of which the others are made up; what it sends is counted by name."""
    found = Counter[str]()
    for name in (*SENT, "all_gather", "all_gather_into_tensor"):
        monkeypatch.setattr(distributed, name, counting(found, name))
    monkeypatch.setenv("WORLD_SIZE", str(WORLD))
    distributed.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    yield found
    ranks._communicators.clear()
    distributed.destroy_process_group()


def counting(found: Counter[str], name: str) -> Any:
    original = getattr(distributed, name)

    def call(*given: Any, **more: Any) -> Any:
        found[name] += 1
        return original(*given, **more)

    return call


def sent_in_a_step(found: Counter[str], *words: str, target_dim: int | None = 8) -> int:
    """Messages of one step: what batch norms, losses and gradients take, and the loss that the log shows."""
    loop = trainer(*words, f"batch_size={4 * WORLD}", n=8 * WORLD, size=16, target_dim=target_dim)

    def of_gradients(_, bucket):  # type: ignore[no-untyped-def]  # the made-up group gives nothing back
        found["gradients"] += 1
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    loop.module.register_comm_hook(None, of_gradients)  # type: ignore[operator]
    loop.trainee.train()
    rows, images = next(loop.draw_batches(0))
    found.clear()
    loop.start_step()
    loss = loop.add_gradients(rows, images, 0)
    loop.update()
    loop.checkpointing.mean_over_ranks(loss, [])
    return found.total()


def test_messages_of_a_step(eight: Counter[str]) -> None:
    """ResNet-18 has 20 batch norms, each with a message forward and one backward; then the loss and one of gradients.

    With statistics of their own ranks only average the running ones.
    """
    assert sent_in_a_step(eight) == 42
    assert eight["all_gather"] == 0, "one tensor, not a list of one for each rank"
    assert sent_in_a_step(eight, "runtime.norm=local") == 3
    assert sent_in_a_step(eight, "runtime.norm=2") == 43
    for method, most in {"simclr": 7, "byol": 3, "dino": 4, "barlow_twins": 13, "vicreg": 5, "swav": 11}.items():
        assert sent_in_a_step(eight, f"method={method}", "runtime.norm=local", target_dim=None) <= most, method


def test_groups_in_one_process_are_torch_s_own_batch_norm_of_each_part() -> None:
    """Two views of three groups of two images, in float64: values, gradients and running statistics."""
    torch.manual_seed(0)
    ours = batch_norm.convert(nn.Sequential(nn.BatchNorm2d(3)).double(), 3)[0]  # type: ignore[index]
    theirs = [nn.BatchNorm2d(3).double() for _ in range(3)]
    x = torch.randn(12, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.randn_like(x)
    with batch_norm.views_apart(2):
        found = ours(x)
    expected = torch.cat([theirs[i % 3](part) for i, part in enumerate(x.chunk(6))])
    assert (found - expected).abs().max() < 1e-12
    gradients = [torch.autograd.grad((out * slope).sum(), x)[0] for out in (found, expected)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-12
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in theirs]).mean(0)
        assert (getattr(ours, name) - mean).abs().max() < 1e-12
    assert int(ours.num_batches_tracked) == 2


def groups_of(made: Config) -> int | None:
    found = Run(made).settings.get("norm_groups")
    assert found is None or isinstance(found, int)
    return found


def test_groups_are_part_of_a_run_where_there_is_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert groups_of(config()) is groups_of(config("runtime.norm=local")) is groups_of(config("runtime.norm=1")) is None
    assert Run(config("runtime.norm=node", "runtime.devices=4")).hash == Run(config()).hash
    by_ranks, by_number = config("runtime.norm=local", "runtime.devices=4"), config("runtime.norm=4")
    assert groups_of(by_ranks) == 4 and Run(by_ranks).hash == Run(by_number).hash != Run(config()).hash
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [ranks.norm_groups(norm, 1) for norm in ("global", "node", "local", 16)] == [1, 2, 8, 16]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("runtime.norm=3",), "runtime.norm=3 gives 3 groups of images, and batch_size=64"),
        (("runtime.norm=4", "runtime.devices=6", "batch_size=96"), "say runtime.norm=global"),
        (("runtime.norm=64",), "leaves a batch norm one image, which has no variance: say batch_size=128"),
        (("runtime.norm=mine",), "runtime.norm=mine must be a whole number, or global or node or local"),
    ],
)
def test_groups_that_cannot_be(words: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(*words)


def test_what_a_choice_of_groups_makes_of_a_run_is_said() -> None:
    found = {(norm, groups): list(of_norm([f"runtime.norm={norm}"], norm, groups)) for norm, groups in SAID}
    assert {key: words[0].partition(":")[2] if words else None for key, words in found.items()} == SAID
    assert list(of_norm([], "global", 1)) == []


SAID: dict[tuple[str | int, int], str | None] = {
    ("local", 1): " this run has one process, whose batch norms see the whole batch",
    ("node", 1): " this run has one machine, whose batch norms see the whole batch",
    ("local", 4): " batch norms see 1/4 of a batch each; runtime.norm=4 does so anywhere",
    (4, 4): None,
    ("global", 1): None,
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(12, 6, 5, 5), (12, 6)])
def test_views_of_16_bits_in_one_tensor_are_torchs_own_one_by_one(shape: tuple[int, ...], affine: bool) -> None:
    """Output, gradients, running statistics and counters, to the bit."""
    torch.manual_seed(0)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    x, gradient = torch.randn(2, *shape).bfloat16()
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    theirs, ours = kind(6, affine=affine), kind(6, affine=affine)
    batch_norm.convert(nn.Sequential(ours))
    found = []
    for norm in (theirs, ours):
        given = x.clone().requires_grad_()
        with batch_norm.views_apart(2):
            out = norm(given) if norm is ours else torch.cat([norm(view) for view in given.chunk(2)])
        out.backward(gradient)
        found.append([out.detach(), given.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert int(ours.num_batches_tracked) == 2  # type: ignore[arg-type]
    assert found[0][0].stride() == found[1][0].stride()
