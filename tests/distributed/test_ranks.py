"""Several processes give what one gives: in float64 to 1e-9, after the same batches, whatever the method."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rela_cli.data.batches.loader import in_blocks
from rela_cli.distributed import batch_norm, ranks
from rela_cli.errors import ConfigError
from rela_cli.evaluation import protocols
from rela_cli.launch import rank_processes, shares
from rela_cli.pipeline.pipeline import Pipeline
from rela_cli.pipeline.run import Run
from rela_cli.stages import probe as stage
from rela_cli.store import blocks
from rela_cli.training.trainer import Trainer, parts_of
from tests import warm
from tests.factories import config, fit, pixels, trainer

METHODS = ("byol", "dino", "simclr", "simsiam", "moco_v3", "barlow_twins", "vicreg", "swav", "supervised")
SMALL_HEADS = {
    "byol": ["method.projection_dim=16"],
    "dino": ["method.hidden_dim=16", "method.projection_dim=16", "method.prototypes=24"],
    "simsiam": ["method.hidden_dim=16", "method.projection_dim=16", "method.predictor_dim=8"],
    "moco_v3": ["method.hidden_dim=16", "method.projection_dim=16"],
    "barlow_twins": ["method.hidden_dim=16", "method.projection_dim=16"],
    "vicreg": ["method.hidden_dim=16", "method.projection_dim=16"],
    "swav": ["method.prototypes=12", "method.frozen_prototypes=0.7"],
}
EPOCHS, STEPS = 2, 4  # two steps each


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return int(it.getsockname()[1])


def one_of(rank: int, world: int, port: int, work: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    """A process as torchrun starts it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with ranks.process_group("cpu"):
        torch.save(work(*arguments), f"{folder}/{rank}.pt")


def on(world: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` gives in each of `world` processes."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    processes = [warm.call(one_of, rank, world, port, work, str(folder), arguments) for rank in range(world)]
    for process in processes:
        out, err = process.communicate(240)
        print(out)
        assert process.returncode == 0, err
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


# ------------------------------------------------------------------------------------------------------- the training


def trained(method: str, double: bool, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Four steps, half of them of matching: what is left, the losses, and the samples that this process saw."""
    words = [f"method={method}", "batch_size=8", f"epochs={EPOCHS}", "switch=fixed", "switch.at=0.5", *extra]
    loop = trainer(*words, *SMALL_HEADS.get(method, []), n=16)
    if double:
        in_double(loop)
    seen = [batch for epoch in range(EPOCHS) for batch in loop.rank_batches(epoch)]
    losses = fit(loop).losses
    assert (loop.position.phase, loop.position.switch_step) == (2, STEPS // 2 + 1)
    state = {k: v.double() for k, v in loop.trainee.state_dict().items()}
    return {"state": state, "losses": torch.stack(losses).double(), "seen": torch.stack(seen)}


def in_double(loop: Trainer) -> None:
    loop.trainee.double()
    for memory in loop.optimizer.state.values():
        memory.update({k: v.double() for k, v in memory.items()})
    targets = None if loop.goals is None else loop.goals.targets.double()
    loop.targets_of = lambda _, batch, epoch: targets[batch] if loop.position.phase == 1 else None  # type: ignore[method-assign, index]
    make_views = loop.make_views
    loop.make_views = lambda *given: [view.double() for view in make_views(*given)]  # type: ignore[method-assign]
    loop.start_phase(loop.position.phase)


def all_methods(methods: tuple[str, ...], double: bool) -> dict[str, Any]:
    return {name: trained(name, double) for name in methods}


@pytest.mark.slow
def test_two_ranks_train_as_one_in_float64_with_every_method(tmp_path: Path) -> None:
    """Reliability row 18, phase 1 and the change to phase 2 included."""
    two = on(2, tmp_path, all_methods, METHODS, True)
    for name in METHODS:
        one = trained(name, True)
        for rank in range(2):
            for key, value in one["state"].items():
                assert (two[rank][name]["state"][key] - value).abs().max() < 1e-9, (name, key)
            assert (two[rank][name]["losses"] - one["losses"]).abs().max() < 1e-9, name
        shares = torch.cat([two[rank][name]["seen"] for rank in range(2)], dim=1)
        assert torch.equal(shares, one["seen"]), "the ranks' shares, side by side, are the batches of one process"
        assert two[0][name]["seen"].shape == (STEPS, 4)


def test_four_ranks_and_a_batch_norm_with_activation(tmp_path: Path) -> None:
    """Of one group, and of two, each of two ranks: what torch's own make of the batch, or of each half."""
    found = on(4, tmp_path, normed_in_groups)
    by_groups = {1: normed(), 2: halves_put_together([normed(part=half) for half in (slice(0, 6), slice(6, 12))])}
    for groups, whole in by_groups.items():
        for rank, of_rank in enumerate(found):
            outputs, gradient, running = of_rank[groups]
            assert (outputs - whole[0][rank * 3 : rank * 3 + 3]).abs().max() < 1e-12
            assert (gradient - whole[1][rank * 3 : rank * 3 + 3]).abs().max() < 1e-12
            assert all((a - b).abs().max() < 1e-12 for a, b in zip(running, whole[2], strict=True))


Normed = tuple[Tensor, Tensor, list[Tensor]]


def halves_put_together(halves: list[Normed]) -> Normed:
    """Outputs and gradients side by side, and the means of the running statistics."""
    outputs, gradients, running = zip(*halves, strict=True)
    return torch.cat(outputs), torch.cat(gradients), [torch.stack(some).mean(0) for some in zip(*running, strict=True)]


def normed_in_groups() -> dict[int, Normed]:
    return {groups: normed(groups) for groups in (1, 2)}


def normed(groups: int = 1, part: slice = slice(None)) -> Normed:
    """torch's and timm's batch norms, ours when there are ranks, on this rank's share of 12 samples."""
    from timm.layers import BatchNormAct2d

    layers = nn.Sequential(BatchNormAct2d(5), nn.BatchNorm2d(5), nn.Flatten(), nn.BatchNorm1d(5 * 16, affine=False))
    layers = layers.double() if ranks.world() == 1 else batch_norm.convert(layers.double(), groups)
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(12, *shape, generator=random, dtype=torch.float64) for shape in ((5, 4, 4), (80,)))
    share = ranks.share(torch.arange(12)[part])
    mine = x[share].clone().requires_grad_()
    outputs = layers(mine)
    (outputs * weight[share]).sum().backward()
    assert mine.grad is not None
    batch_norm.share_running_statistics(layers)
    return outputs.detach(), mine.grad, [b.clone().double() for b in layers.buffers()]


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_gradient_of_a_batch_norm_over_ranks_by_finite_differences(shape: tuple[int, ...], affine: bool) -> None:
    """Two views in one pass; of one process, whose batch norm is also what torch's own makes of each view."""
    torch.manual_seed(0)
    kind, original = (
        (batch_norm.BatchNorm2d, nn.BatchNorm2d) if len(shape) == 4 else (batch_norm.BatchNorm1d, nn.BatchNorm1d)
    )
    layer, theirs = kind(3, affine=affine).double(), original(3, affine=affine).double()
    for parameter, other in zip(layer.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(nn.init.normal_(parameter))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def two_views(x: Tensor, *_: Tensor) -> Tensor:
        with batch_norm.views_apart(2):
            return batch_norm.over_all_ranks(layer, x)

    assert (two_views(x) - torch.cat([theirs(view) for view in x.chunk(2)])).abs().max() < 1e-12
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(layer.buffers(), theirs.buffers(), strict=True))
    assert torch.autograd.gradcheck(two_views, (x, *layer.parameters()))


def test_a_batch_norm_of_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SyncBatchNorm .* runtime.devices=1"):
        batch_norm.convert(nn.Sequential(nn.SyncBatchNorm(4)))


def test_two_ranks_with_statistics_of_their_own_train_as_one_process_with_two_groups(tmp_path: Path) -> None:
    found = on(2, tmp_path, trained, "byol", True, ("runtime.norm=local",))
    one, other = trained("byol", True, ("runtime.norm=2",)), trained("byol", True)
    for rank in range(2):
        assert distance(found[rank]["state"], one["state"]) < 1e-9
        assert (found[rank]["losses"] - one["losses"]).abs().max() < 1e-9
    assert distance(one["state"], other["state"]) > 1e-3, "statistics of halves are another method"


def test_float32_is_no_further_apart_than_two_orders_of_summation(tmp_path: Path) -> None:
    """One process with its batch in another order (the same samples) is the yardstick: SGD, which amplifies nothing."""
    two = on(2, tmp_path, trained, "simclr", False, ("optimizer=sgd", "optimizer.lr=0.01"))
    one = trained("simclr", False, ("optimizer=sgd", "optimizer.lr=0.01"))
    exact = trained("simclr", True, ("optimizer=sgd", "optimizer.lr=0.01"))
    apart = distance(two[0]["state"], one["state"])
    assert 0 < apart < 4 * distance(one["state"], exact["state"])
    assert distance(two[0]["state"], two[1]["state"]) == 0, "ranks hold the same weights"


BF16 = 2.0**-8  # of a number, the most that rounding to bfloat16 changes it


def hooked() -> dict[str, Any]:
    """The mean of two gradients with the hook and without, each rank's own, and a training of both phases."""
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(ranks.rank()))
    found: dict[str, Any] = {}
    for hook in ("none", "bf16", "own"):
        torch.manual_seed(0)
        net: nn.Module = nn.Linear(40, 30)
        net = net if hook == "own" else ranks.data_parallel(net, False, hook)
        net(x).square().sum().backward()
        found[hook] = next(iter(net.parameters())).grad
    sgd = ("optimizer=sgd", "optimizer.lr=0.01")
    found |= {"run": trained("simclr", False, ("runtime.gradient_hook=bf16", *sgd))}
    return {**found, "fp32": trained("simclr", False, sgd)}


def test_gradients_in_16_bits(tmp_path: Path) -> None:
    """Two roundings: of each rank's gradient and of their mean. All ranks get the same, in both phases."""
    found = on(2, tmp_path, hooked)
    exact, rounded = found[0]["none"], found[0]["bf16"]
    assert (exact - (found[0]["own"] + found[1]["own"]) / 2).abs().max() < 1e-5
    sizes = sum(one["own"].abs() for one in found) / 2
    error = (rounded - exact).abs()
    assert (error <= 2 * BF16 * sizes + 1e-6).all() and error.max() > 1e-3 * BF16 * sizes.max()
    assert torch.equal(rounded, found[1]["bf16"])
    runs, fp32 = [one["run"]["state"] for one in found], found[0]["fp32"]["state"]
    assert distance(*runs) == 0
    start = trainer("method=simclr", "batch_size=8", n=24).trainee.state_dict()
    moved = max((fp32[key] - start[key].double()).abs().max().item() for key in start if "running" not in key)
    assert 0 < distance(runs[0], fp32) < 0.1 * moved


def test_gradients_in_16_bits_are_another_run_and_need_several_devices() -> None:
    with pytest.raises(
        ConfigError, match=r"gradient_hook=bf16 is about what several devices send .* runtime.devices=N"
    ):
        config("runtime.gradient_hook=bf16")
    plain, rounded = config("runtime.devices=2"), config("runtime.devices=2", "runtime.gradient_hook=bf16")
    assert Run(plain).hash == Run(config()).hash != Run(rounded).hash
    assert Run(rounded).settings["gradient_hook"] == "bf16" and "gradient_hook" not in Run(plain).settings


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[key] - other[key]).abs().max().item() for key in one)


def test_accumulated_parts_are_the_mean_of_their_losses() -> None:
    """By running statistics, which parts do not change, the gradient of two parts is that of the whole batch."""
    gradients, losses = list[list[Tensor | None]](), list[Any]()
    for parts in (1, 2):
        loop = trainer("method=supervised", f"accumulate={parts}")
        loop.start_phase(2)
        in_double(loop)
        loop.trainee.eval()
        batch, images = next(loop.draw_batches(0))
        shares = parts_of(batch, images, loop.config.accumulate, loop.module)
        losses.append(sum(loop.add_gradients(rows, part, 0) for rows, part in shares))
        gradients.append([p.grad for p in loop.trainee.method.parameters()])
    assert abs(losses[0] - losses[1]) < 1e-12
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*gradients, strict=True))


def test_views_in_one_pass_are_those_of_two(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics; each view has its own batch statistics."""
    random = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 3, 8, 8, generator=random, dtype=torch.float64) * (1 + i) for i in range(2)]
    found = []
    for one_pass in (False, True):
        loop = trainer("method=byol", target_dim=None)
        in_double(loop)
        method = batch_norm.convert(loop.trainee.method)
        method.one_pass = method.target.one_pass = one_pass  # type: ignore[union-attr, assignment]
        loss = method(views)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None), *method.buffers()])
    assert all((a.double() - b.double()).abs().max() < 1e-10 for a, b in zip(*found, strict=True))
    joint = nn.BatchNorm2d(3).double()(torch.cat(views))
    apart = torch.cat([nn.BatchNorm2d(3).double()(view) for view in views])
    assert (joint - apart).abs().max() > 0.1, "statistics of both views together would be another method"


# --------------------------------------------------------------------------------------------------------- extraction


def blocks_of(n: int, size: int) -> tuple[Tensor, int]:
    """Outputs of a small network for all images, and how many blocks this process computed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16)).eval()
    calls = []

    def compute(block: Tensor) -> Tensor:
        calls.append(len(block))
        return network(block.float() / 255)  # type: ignore[no-any-return]

    outputs = list(in_blocks(compute, pixels(n, 8), size, torch.device("cpu")))
    return torch.cat(outputs), len(calls)


def test_blocks_are_the_same_bits_on_any_number_of_ranks(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, count = blocks_of(90, 8)
    torch.set_num_threads(threads)
    assert count == 12
    for world in (2, 4):
        found = on(world, tmp_path / str(world), blocks_of, 90, 8)
        assert [calls for _, calls in found] == [12 // world] * world, "its share and no more"
        assert all(torch.equal(outputs, whole) for outputs, _ in found)


def extracted(outputs: str, stop: int | None = None) -> bytes:
    """The features file; with `stop`, what a process that was stopped after so many blocks has left of it."""
    words = ["dataset=fake", "dataset.n=64", "dataset.size=8", "prior=random", "prior.width=4", "runtime.block_size=8"]
    work = Run(config(*words, f"paths.outputs={outputs}", "runtime.device=cpu"))
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        add = blocks.KeptWriter.add

        def stopping(self: blocks.KeptWriter, block: Tensor) -> None:
            if self.blocks == stop:
                raise KeyboardInterrupt
            add(self, block)

        patch.setattr(blocks.KeptWriter, "add", stopping)
        Pipeline(work, "extract").make_targets("extract")
    folder = work.features.part if stop else work.features.folder
    return (folder / "train.safetensors").read_bytes()


def test_several_go_on_with_what_one_has_begun(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = extracted(str(tmp_path / "whole"))
    part = extracted(str(tmp_path / "part"), stop=3)
    torch.set_num_threads(threads)
    assert whole.startswith(part) and len(part) < len(whole)
    assert on(2, tmp_path / "ranks", extracted, str(tmp_path / "part")) == [whole, whole]
    assert "extract train: resumed at block 3 of 8" in capfd.readouterr().out


def joined_views(outputs: str) -> list[bytes]:
    """Targets of two light views by an ensemble of two priors, and where the views are cut."""
    words = ["dataset=fake", "dataset.n=64", "dataset.size=8", "prior=ensemble", "runtime.block_size=8"]
    words += ["prior.members=[{name: random, width: 4},{name: patches, patches: 4, patch_size: 4}]", "extract.views=2"]
    work = Run(config(*words, f"paths.outputs={outputs}", "runtime.device=cpu"))
    Pipeline(work, "transport").make_targets("transport")
    return [(work.view_targets.folder / f"{name}.safetensors").read_bytes() for name in ("train", "boxes")]


def test_two_ranks_make_the_views_of_one(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = joined_views(str(tmp_path / "alone"))
    torch.set_num_threads(threads)
    assert on(2, tmp_path / "ranks", joined_views, str(tmp_path / "together")) == [alone, alone]


def test_a_batch_that_cannot_be_shared_out_is_refused_before_torch() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=17 cannot be shared out evenly over 2 processes.*batch_size=16"):
        config("runtime.devices=2", "batch_size=17")
    with pytest.raises(ConfigError, match=r"batch_size=8 cannot .* 1 process times accumulate=8; say batch_size=16"):
        config("accumulate=8", "batch_size=8")  # a part of one image has no batch statistics


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0, 0], None),
        ([None, None], None),
        ([4, None], ("process 0 of 2 ended with status 4", 4)),
        ([1, None], ("process 0 of 2 ended with status 1", 1)),
        ([1, 3], ("process 1 of 2 ended with status 3", 3)),  # the other has lost touch with it
        ([143, 143], ("process 0 of 2 ended with status 143", 143)),
    ],
)
def test_whose_failure_it_was(statuses: list[int | None], expected: tuple[str, int] | None) -> None:
    assert rank_processes.first_failure(statuses) == expected


def test_one_that_was_killed_is_named_before_one_that_has_lost_touch_with_it() -> None:
    found = rank_processes.first_failure([1, -9])
    assert found is not None and found[1] == 1
    assert found[0].startswith("process 1 of 2 ended without a word")


def test_all_is_on_the_loopback_interface_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    monkeypatch.setenv("RANK", "7")
    found = rank_processes.environment("/folder", 1, 4)
    assert found["GLOO_SOCKET_IFNAME"] == found["NCCL_SOCKET_IFNAME"] == rank_processes.loopback()
    assert [found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["1", "1", "4"]


@pytest.mark.parametrize(("cores", "count", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1")])
def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, cores: int, count: int, threads: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert rank_processes.environment("/folder", 0, count)["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert rank_processes.environment("/folder", 0, count)["OMP_NUM_THREADS"] == "5", "the user's word counts"


def test_the_ranks_of_a_cell_share_its_cores_and_not_each_takes_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share sets the thread counts of its cell to all of its cores."""
    for name in (*shares.THREAD_VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")  # is put back after the test
    monkeypatch.setattr(shares, "_is_confined", False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    shares.confine(range(8), "0,1")
    found = rank_processes.environment("/folder", 0, 2)
    assert [found[name] for name in shares.THREAD_VARIABLES] == ["4"] * 3


# ------------------------------------------------------------------------------------------------------------ probing


@contextmanager
def noted() -> Iterator[list[str]]:
    """The protocols that this process fits meanwhile."""
    fitted: list[str] = []
    real = dict(protocols.FITTERS)

    def counted(name: str) -> Callable[..., Any]:
        return lambda *given: (fitted.append(name), real[name](*given))[1]

    protocols.FITTERS.update({name: counted(name) for name in real})
    yield fitted
    protocols.FITTERS.update(real)


def without_seconds(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: {k: v for k, v in found.items() if k != "seconds"} for name, found in numbers.items()}


def probed() -> tuple[dict[str, Any], list[str]]:
    """Every protocol's number on one task, and which of them this process has fitted."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    x = torch.randn(4, 12, generator=random)[labels] + torch.randn(200, 12, generator=random)
    with noted() as fitted:
        numbers = stage.probes(
            protocols.Task(x, labels, x.flip(0), labels.flip(0)), list(protocols.FITTERS), config().probe
        )
    return without_seconds(numbers), fitted


def untrained(outputs: str) -> tuple[dict[str, Any], list[str], int]:
    """The untrained learner under three protocols, those fitted here, and how often its features were made."""
    words = ["dataset=fake", "dataset.n=200", "dataset.size=8", "learner.width=8", "prior=none"]
    made = config(*words, "probe.protocols=[lbfgs,knn,few_shot]", f"paths.outputs={outputs}", "runtime.device=cpu")
    found: dict[str, Any] = {}
    with noted() as fitted, pytest.MonkeyPatch.context() as patch:
        tasks: list[Any] = []
        real = stage.untrained_task
        patch.setattr(stage, "untrained_task", lambda *given: (tasks.append(1), real(*given))[1])
        Pipeline(Run(made), "train").probing.add_baselines(found)
    return without_seconds(found["untrained"]), fitted, len(tasks)


@pytest.mark.slow
def test_protocols_are_shared_out_and_give_the_numbers_of_one_process(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, _ = probed()
    torch.set_num_threads(threads)
    (first, by_first), (second, by_second) = on(2, tmp_path, probed)
    assert first == second == whole and list(first) == list(whole) == list(protocols.FITTERS)
    assert (by_first, by_second) == (["knn", "rela", "sgd_grid"], ["knn", "lbfgs", "few_shot"])


@pytest.mark.slow
def test_baselines_have_their_features_once_and_are_shared_out(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = untrained(str(tmp_path / "one"))
    torch.set_num_threads(threads)
    assert whole[1:] == (["lbfgs", "knn", "few_shot"], 1)
    first, second = on(2, tmp_path / "ranks", untrained, str(tmp_path / "two"))
    assert first[0] == second[0] == whole[0] and list(whole[0]) == ["lbfgs", "knn", "few_shot"]
    assert first[1:] == (["knn", "lbfgs"], 1) and second[1:] == (["knn", "few_shot"], 1)
    again = untrained(str(tmp_path / "two"))
    assert again == (whole[0], [], 0)
