"""Each method against its paper's formula in float64, its gradients, and the running average of its target network."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, distributed, nn

from rela_cli.config.parts import instantiate
from rela_cli.methods.base import Average, Method, each
from rela_cli.stages.train import step_flops
from rela_cli.training.trainer import Trainer
from tests import warm
from tests.conftest import Rela
from tests.factories import config, fit, trainer

SIZES = {
    "byol": ("method.hidden_dim=24", "method.projection_dim=12"),
    "simclr": ("method.hidden_dim=24", "method.projection_dim=12"),
    "dino": ("method.hidden_dim=24", "method.projection_dim=12", "method.prototypes=20"),
    "simsiam": ("method.hidden_dim=24", "method.projection_dim=12", "method.predictor_dim=8"),
    "moco_v3": ("method.hidden_dim=24", "method.projection_dim=12"),
    "barlow_twins": ("method.hidden_dim=24", "method.projection_dim=12"),
    "vicreg": ("method.hidden_dim=24", "method.projection_dim=12"),
    "swav": ("method.hidden_dim=24", "method.projection_dim=12", "method.prototypes=20"),
    "supervised": (),
}
METHODS = tuple(SIZES)
TARGETS = {"byol": "target", "dino": "teacher", "moco_v3": "target"}
LABELS = torch.arange(10) % 4


class Flat(nn.Module):
    """The smallest backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.flatten(1)))


def made(name: str, *overrides: str) -> Method:
    torch.manual_seed(0)
    part = config(f"method={name}", *SIZES[name], *overrides).method
    method: Method = instantiate(part, backbone=Flat(), feature_dim=16, classes=4)
    if name in TARGETS:  # else the two networks are equal and an exchange of them would not be seen
        with torch.no_grad():
            for parameter in getattr(method, TARGETS[name]).parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def two_views(n: int = 10) -> list[Tensor]:
    return list(torch.randn(2, n, 3, 4, 4, generator=torch.Generator().manual_seed(1)))


def loss_of(method: Method, views: list[Tensor]) -> Tensor:
    return method(views, LABELS) if method.uses_labels else method(views)


def loop_of(name: str, *overrides: str, **kinds: object) -> Trainer:
    return trainer(f"method={name}", *SIZES[name], *overrides, **kinds)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- formulas, by themselves


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def batch_norm(x: Tensor, layer: nn.BatchNorm1d) -> Tensor:
    y = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
    return y * layer.weight + layer.bias if layer.affine else y


def head(x: Tensor, modules: nn.Module) -> Tensor:
    """A stack of layers, batch norm written out; what the lightly heads are made of."""
    for layer in modules.modules():
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, nn.BatchNorm1d):
            x = batch_norm(x, layer)
        elif isinstance(layer, nn.ReLU):
            x = x.clamp(min=0)
        elif isinstance(layer, nn.GELU):
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x


def flat(x: Tensor, backbone: nn.Module) -> Tensor:
    return (x.flatten(1) @ backbone.linear.weight.T + backbone.linear.bias).clamp(min=0)  # type: ignore[union-attr,operator]


def byol(method: nn.Module, views: list[Tensor]) -> Tensor:
    """Equations 2: |q(z) - z'|^2 of unit vectors, mean over the batch, both directions added."""
    backbone, projector = method.target.network
    z = [unit(head(flat(v, backbone), projector)) for v in views]
    p = [unit(head(head(flat(v, method.backbone), method.projector), method.predictor)) for v in views]
    return sum(((p[i] - z[1 - i]) ** 2).sum(1).mean() for i in range(2))


def simclr(method: nn.Module, views: list[Tensor], temperature: float = 0.2) -> Tensor:
    """Equation 1, over all 2N ordered pairs."""
    z = unit(torch.cat([head(flat(v, method.backbone), method.projector) for v in views]))
    n, total = len(z) // 2, 0.0
    similarity = z @ z.T / temperature
    for i in range(2 * n):
        others = torch.cat([similarity[i, :i], similarity[i, i + 1 :]])
        total = total - similarity[i, (i + n) % (2 * n)] + torch.log(torch.exp(others).sum())
    return total / (2 * n)


def prototypes(projection: nn.Module) -> list[Tensor]:
    """Lengths and directions of the weight-normalised last layer; torch has renamed them."""
    layer = projection.last_layer
    if hasattr(layer, "weight_v"):
        return [layer.weight_g, layer.weight_v]
    return [layer.parametrizations.weight.original0, layer.parametrizations.weight.original1]


def dino_scores(x: Tensor, backbone: nn.Module, projection: nn.Module) -> Tensor:
    x = unit(head(flat(x, backbone), projection.layers))
    length, direction = prototypes(projection)
    return x @ (length * direction / direction.norm(dim=1, keepdim=True)).T


def dino(method: nn.Module, views: list[Tensor], center: Tensor, temperature: float) -> Tensor:
    """Equation 3 of the paper: -P_t log P_s over all pairs of a global view and another view."""
    backbone, projection = method.teacher.network
    t = [((dino_scores(v, backbone, projection) - center) / temperature).softmax(1) for v in views[:2]]
    s = [(dino_scores(v, method.backbone, method.head) / 0.1).log_softmax(1) for v in views]
    terms = [-(t[i] * s[j]).sum(1).mean() for i in range(2) for j in range(len(views)) if i != j]
    return sum(terms[1:], terms[0]) / len(terms)


def projections(method: nn.Module, views: list[Tensor]) -> list[Tensor]:
    return [head(flat(v, method.backbone), method.projector) for v in views]


def simsiam(method: nn.Module, views: list[Tensor]) -> Tensor:
    """Equations 1 and 2: minus the cosine, half of each direction."""
    z = projections(method, views)
    p = [head(x, method.predictor) for x in z]
    return -sum((unit(p[i]) * unit(z[1 - i])).sum(1).mean() for i in range(2)) / 2


def moco_v3(method: nn.Module, views: list[Tensor], temperature: float = 0.2) -> Tensor:
    """Equation 1, times 2 T as in Algorithm 1, for both directions."""
    backbone, projector = method.target.network
    k = [unit(head(flat(v, backbone), projector)) for v in views]
    q = [unit(head(z, method.predictor)) for z in projections(method, views)]
    total = 0.0
    for i in range(2):
        e = torch.exp(q[i] @ k[1 - i].T / temperature)
        total = total - 2 * temperature * torch.log(e.diagonal() / e.sum(1)).mean()
    return total


def barlow_twins(method: nn.Module, views: list[Tensor], redundancy: float = 5e-3) -> Tensor:
    """Equations 1 and 2; each deviation is that of the authors' batch norm, which adds 1e-5 to the variance."""
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in projections(method, views))
    total = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = (a[:, i] * b[:, j]).mean()
            total = total + ((1 - c) ** 2 if i == j else redundancy * c**2)
    return total


def vicreg(method: nn.Module, views: list[Tensor]) -> Tensor:
    """Equations 1 to 6, with the mean square of Algorithm 1 as the distance."""
    z, n = projections(method, views), len(views[0])
    total = 25 * ((z[0] - z[1]) ** 2).mean()
    for x in z:
        x = x - x.mean(0)
        c = x.T @ x / (n - 1)
        total = total + 25 * (1 - (c.diagonal() + 1e-4).sqrt()).clamp(min=0).mean()
        total = total + (c**2).fill_diagonal_(0).sum() / x.shape[1]
    return total


def swav(method: nn.Module, views: list[Tensor]) -> Tensor:
    """Equations 1 to 5: codes by Sinkhorn's iterations in the form Diag(u) exp(C'Z / eps) Diag(v)."""
    scores = [unit(z) @ method.prototypes.weight.T for z in projections(method, views)]
    total = 0.0
    for i in range(2):
        e = torch.exp(scores[i] / 0.05).T  # (K, B)
        u, v = torch.ones(len(e)).double(), torch.ones(e.shape[1]).double() / e.sum()
        for _ in range(3):
            u = 1 / len(e) / (e @ v)
            v = 1 / e.shape[1] / (e.T @ u)
        q = (u[:, None] * e * v).T * e.shape[1]
        total = total - (q * (scores[1 - i] / 0.1).log_softmax(1)).sum(1).mean() / 2
    return total


def supervised(method: nn.Module, views: list[Tensor]) -> Tensor:
    p = head(flat(views[0], method.backbone), method.classifier).softmax(1)
    return -torch.log(p[torch.arange(len(p)), LABELS]).mean()


FORMULAS = {
    "byol": byol,
    "simclr": simclr,
    "dino": lambda m, v: dino(m, v, torch.zeros(20).double(), 0.04),
    "simsiam": simsiam,
    "moco_v3": moco_v3,
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
    "swav": swav,
    "supervised": supervised,
}
SHARP = ("dino", "swav")  # they divide scores by 0.04 and 0.05, which makes 25 of each rounding


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_the_papers(name: str) -> None:
    """In float32 to 1e-6 of it (or of 1), those with sharp scores to 1e-5; in float64 to 1e-9."""
    method = made(name).train()
    exact, views = copy.deepcopy(method).double(), [v.double() for v in two_views()]
    expected = FORMULAS[name](exact, views).item()
    tolerance = 1e-5 if name in SHARP else 1e-6
    assert loss_of(method, two_views()).item() == pytest.approx(expected, abs=tolerance, rel=tolerance)
    assert loss_of(exact, views).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_simclr_temperature(temperature: float) -> None:
    method, views = made("simclr", f"method.temperature={temperature}").double(), [v.double() for v in two_views()]
    assert method(views).item() == pytest.approx(simclr(method, views, temperature).item(), abs=1e-9)


def test_dino_centre_and_teacher_temperature_move() -> None:
    method = made("dino", "method.warmup_teacher_temperature=0.04", "method.teacher_temperature=0.07").double().train()
    views, center = [v.double() for v in two_views()], torch.zeros(20).double()
    for progress, temperature in [(0.0, 0.04), (0.15, 0.055), (0.3, 0.07), (0.9, 0.07)]:
        method.after_step(progress)
        backbone, projection = method.teacher.network
        expected = dino(method, views, center, temperature).item()
        scores = torch.cat([dino_scores(v, backbone, projection) for v in views])
        center = 0.9 * center + 0.1 * scores.mean(0)
        assert method(views).item() == pytest.approx(expected, abs=1e-9), progress


def test_dino_local_views_reach_the_student_only() -> None:
    method = made("dino", "method.local_views=3").double().train()
    assert len(method.views) == 5
    assert [view.size_scale for view in method.views] == [1, 1, 0.43, 0.43, 0.43]
    views = list(torch.randn(5, 10, 3, 4, 4, generator=torch.Generator().manual_seed(2)).double())
    expected = dino(method, views, torch.zeros(20).double(), 0.04).item()
    assert method(views).item() == pytest.approx(expected, abs=1e-8)  # its temperature is a float32


def test_local_views_are_smaller_and_leave_the_global_ones_as_they_are() -> None:
    """Streams are numbered by view, so the two global views are the same with and without local ones."""
    plain, local = (loop_of("dino", f"method.local_views={n}", size=16, target_dim=None) for n in (0, 2))
    batch = next(plain.rank_batches(0))
    views = [loop.views[2](loop.images[batch], batch, 0) for loop in (plain, local)]
    assert [view.shape[-1] for view in views[1]] == [16, 16, 7, 7]
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=False))
    assert not torch.equal(views[1][2], views[1][3])
    seen: dict[str, list[int]] = {"student": [], "teacher": []}
    local.trainee.method.backbone.register_forward_pre_hook(lambda _, x: seen["student"].append(x[0].shape[-1]))
    teacher = local.trainee.method.networks()["target"]
    teacher.register_forward_pre_hook(lambda _, x: seen["teacher"].append(x[0].shape[-1]))
    fit(local, steps=1)
    assert seen == {"student": [16, 16, 7, 7], "teacher": [16, 16]}


@pytest.mark.parametrize(
    ("name", "key"), [("barlow_twins", "redundancy"), ("vicreg", "variance"), ("vicreg", "covariance")]
)
def test_weights_of_the_terms_are_used(name: str, key: str) -> None:
    """The loss is linear in each of them."""
    a, b, c = (made(name, f"method.{key}={value}").double()([v.double() for v in two_views()]) for value in (1, 2, 3))
    assert (c - b).item() == pytest.approx((b - a).item(), abs=1e-9) != 0


def test_barlow_twins_scale() -> None:
    whole, tenth = (made("barlow_twins", f"method.loss_scale={s}")(two_views()).item() for s in (1.0, 0.1))
    assert tenth == pytest.approx(whole / 10)


def test_swavs_prototypes_stay_unit_vectors() -> None:
    loop = loop_of("swav", target_dim=None)
    lengths: list[Tensor] = [loop.trainee.method.prototypes.weight.norm(dim=1)]
    before = loop.trainee.method.prototypes.weight.detach().clone()
    fit(loop, lambda: lengths.append(loop.trainee.method.prototypes.weight.detach().norm(dim=1)))
    assert all(torch.allclose(length, torch.ones(20), atol=1e-6) for length in lengths)
    assert not torch.allclose(before, loop.trainee.method.prototypes.weight)


def test_swavs_prototypes_wait_for_their_share_of_the_run() -> None:
    loop = loop_of("swav", "method.frozen_prototypes=0.5", target_dim=None)
    seen = [loop.trainee.method.prototypes.weight.detach().clone()]
    fit(loop, lambda: seen.append(loop.trainee.method.prototypes.weight.detach().clone()))
    moved = [not torch.allclose(a, b, atol=1e-6) for a, b in pairwise(seen)]
    assert moved == [False] * 4 + [True] * 4


def test_simsiam_stops_the_gradient_at_the_projection() -> None:
    """With a predictor of one view only, the other view's branch gets nothing."""
    method = made("simsiam").double()
    views = [v.double().requires_grad_() for v in two_views()]
    z1, z2 = (method.projector(method.backbone(view)) for view in views)
    one = method.similarity(method.predictor(z1), z2.detach())
    one.backward()
    assert views[0].grad is not None and views[1].grad is None


# ----------------------------------------------------------------------------------------------------- several ranks


def half_of_barlow(rank: int, folder: str) -> None:
    """One of two processes: the loss of its half of the batch, and the gradients averaged over both."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    method = linear_barlow()
    loss = method([v.double()[5 * rank : 5 * rank + 5] for v in two_views()])
    loss.backward()
    gradients = [p.grad for p in method.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
        gradient /= 2  # as DistributedDataParallel
    torch.save([loss.detach(), *gradients], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def linear_barlow() -> Method:
    """Without the batch norm of its projector, which would see each rank's half only."""
    method = made("barlow_twins")
    method.projector = nn.Linear(16, 12)
    nn.init.normal_(method.projector.weight, generator=torch.Generator().manual_seed(3))
    return method.double()


def test_barlow_twins_on_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    halves = [warm.call(half_of_barlow, rank, str(tmp_path)) for rank in range(2)]
    assert [half.wait(240) for half in halves] == [0, 0]
    method = linear_barlow()
    loss = method([v.double() for v in two_views()])
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for ours, one in zip(found, [loss.detach(), *(p.grad for p in method.parameters())], strict=True):
            assert (ours - one).abs().max() < 1e-9
    alone = method([v.double()[:5] for v in two_views()])
    assert abs(alone - loss) > 1e-3, "a rank by itself has another loss"


# ------------------------------------------------------------------------------------------------------------ labels


def test_labels_reach_the_method_in_phase_2_only() -> None:
    loop = loop_of("supervised", "switch=fixed", "switch.at=0.5")
    seen: list[Tensor] = []
    loop.trainee.method.register_forward_pre_hook(lambda _, x: seen.append(x[1]))
    batches = [batch for epoch in range(2) for batch in loop.rank_batches(epoch)]
    fit(loop)
    assert len(seen) == 4
    assert all(torch.equal(a, b % 4) for a, b in zip(seen, batches[4:], strict=True))
    assert loop.trainee.method.classifier.weight.shape == (4, 32)


def test_other_methods_never_see_a_label() -> None:
    for name in METHODS:
        loop = loop_of(name, target_dim=None)
        assert (loop.labels_of(next(loop.rank_batches(0))) is not None) == (name == "supervised")


def test_no_labels_are_a_config_error_before_any_work(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "loose" / f"{i}.png")
    words = ["dataset=image_folder", "dataset.root=loose", "method=supervised", "batch_size=8", "epochs=1"]
    done = rela("train", *words)
    assert done.returncode == 2, done.stderr
    assert "method=supervised needs labels" in done.stderr
    assert "one folder a class" in done.stderr
    assert not list(tmp_path.glob("outputs/*/*"))


def test_reference_head_sizes() -> None:
    """BYOL D-2D-256 and 256-2D-256; DINO D-2048-256 and 2048 prototypes."""
    byol = instantiate(config("method=byol").method, backbone=Flat(), feature_dim=16)
    shapes = [[tuple(p.shape) for p in part.parameters() if p.ndim == 2] for part in (byol.projector, byol.predictor)]
    assert shapes == [[(32, 16), (256, 32)], [(32, 256), (256, 32)]]
    head = instantiate(config("method=dino").method, backbone=Flat(), feature_dim=16).head
    assert [m.weight.shape for m in head.layers if isinstance(m, nn.Linear)][-1] == (256, 2048)
    assert prototypes(head)[1].shape == (2048, 256)


# ------------------------------------------------------------------------------------------------- gradients, phases


def names_with_gradient(loop: Trainer) -> set[str]:
    return {n for n, p in loop.trainee.named_parameters() if p.grad is not None and bool(p.grad.any())}


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_has_a_gradient_in_its_phase_and_one_group(name: str) -> None:
    loop = loop_of(name, "switch=fixed", "switch.at=0.5", "optimizer.lr=1e-3")
    trainable = {n for n, p in loop.trainee.named_parameters() if p.requires_grad}
    optimized = [id(p) for group in loop.optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(p) for p in loop.trainee.parameters() if p.requires_grad}
    backbone = {n for n in trainable if n.startswith("method.backbone.")}
    transfer = {"matching.transfer.weight", "matching.transfer.bias"}
    heads = trainable - backbone - transfer
    assert backbone and heads
    touched: dict[int, set[str]] = {1: set(), 2: set()}
    fit(loop, lambda: touched[loop.position.phase].update(names_with_gradient(loop)))
    assert touched == {1: backbone | transfer, 2: backbone | heads}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_gradient_reaches_the_target_network(name: str) -> None:
    loop = loop_of(name, target_dim=None)
    target = getattr(loop.trainee.method, TARGETS[name])
    assert list(target.parameters())
    assert not any(p.requires_grad for p in target.parameters())
    fit(loop, steps=1)
    assert all(p.grad is None for p in target.parameters())
    assert not any(output.requires_grad for output in target([torch.randn(4, 3, 8, 8)]))
    optimized = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in target.parameters()}


def test_target_and_online_network_do_not_share_tensors() -> None:
    for name, attribute in TARGETS.items():
        method = loop_of(name).trainee.method
        target = {p.data_ptr() for p in getattr(method, attribute).parameters()}
        own = {p.data_ptr() for n, p in method.named_parameters() if not n.startswith(attribute)}
        assert not target & own


# ------------------------------------------------------------------------------------------------------ target network


def follower(loop: Trainer, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters of the target network and of what it follows, cloned, under the same names."""
    method = loop.trainee.method
    online = method.student() if name == "dino" else method.online()
    target = getattr(method, TARGETS[name]).network
    return tuple({n: p.detach().clone() for n, p in m.named_parameters()} for m in (target, online))  # type: ignore[return-value]


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_one_update_of_the_running_average(name: str, phase: int) -> None:
    """m * target + (1 - m) * online, after the step, backbone and projector, in both phases."""
    loop = loop_of(
        name, "method.ema=0.9", "method.ema_schedule=constant", "switch=never", target_dim=8 if phase == 1 else None
    )
    before, start = follower(loop, name)
    fit(loop, steps=1)
    assert loop.position.phase == phase
    after, online = follower(loop, name)
    assert before.keys() == online.keys()
    moved = 0
    for key in before:
        expected = 0.9 * before[key].double() + 0.1 * online[key].double()
        assert (after[key] - expected).abs().max() < 1e-6, key
        moved += not torch.equal(online[key], start[key])
    assert moved > 10


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_phase_1_leaves_a_warm_target(name: str) -> None:
    """At the hand-over the target network is where the average is, not where it was born."""
    loop = loop_of(name, "method.ema=0.5", "switch=never", "epochs=4", "optimizer.lr=1e-2")
    born, _ = follower(loop, name)
    fit(loop)
    warm, online = follower(loop, name)

    def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return sum(float((a[k] - b[k]).norm()) for k in a if k.startswith("0."))

    assert distance(born, online) > 0
    assert distance(warm, online) < 0.5 * distance(born, online)


def test_running_statistics_follow_too() -> None:
    online = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = Average(online, 0.9, "constant")
    online.train()(torch.randn(8, 3, 4, 4) * 3 + 5)
    average.follow(online, 0.0)
    assert torch.allclose(average.network[1].running_mean, 0.1 * online[1].running_mean)
    assert torch.allclose(average.network[1].running_var, 0.9 + 0.1 * online[1].running_var)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_both_networks_are_named_for_the_probe(name: str) -> None:
    method = loop_of(name).trainee.method
    assert set(method.networks()) == {"online", "target"}
    assert method.networks()["online"] is method.backbone
    assert method.networks()["target"].state_dict().keys() == method.backbone.state_dict().keys()
    assert set(loop_of("simclr").trainee.method.networks()) == {"online"}


@pytest.mark.parametrize(("progress", "momentum"), [(0, 0.99), (0.25, 0.991464466), (0.5, 0.995), (1, 1.0)])
def test_cosine_schedule_of_the_momentum(progress: float, momentum: float) -> None:
    """BYOL, section 3.2: 1 - (1 - tau) (cos(pi k / K) + 1) / 2."""
    assert Average(nn.Linear(1, 1), 0.99, "cosine").momentum(progress) == pytest.approx(momentum, abs=1e-9)
    assert Average(nn.Linear(1, 1), 0.99, "constant").momentum(progress) == 0.99


def test_counting_flops_changes_nothing() -> None:
    for name in METHODS:
        loop = loop_of(name)
        before = {k: v.clone() for k, v in loop.trainee.state_dict().items()}
        costs = step_flops(loop)
        assert costs.keys() == {1, 2}
        assert min(costs.values()) > 0
        assert all(torch.equal(v, before[k]) for k, v in loop.trainee.state_dict().items())
        assert all(p.grad is None for p in loop.trainee.parameters())
        assert (loop.position.phase, loop.position.step) == (1, 0)


@pytest.mark.parametrize("name", METHODS)
def test_phase_2_learns(name: str) -> None:
    """On a handful of images the loss has to fall; a frozen learner or a dead loss would not."""
    slow = ("epochs=24", "optimizer.lr=1e-2")  # else the noise of the crops is as large as the fall
    loop = loop_of(name, *(slow if name == "simclr" else ("epochs=12", "optimizer.lr=3e-3")), target_dim=None)
    losses = [record["loss"] for record in fit(loop).records]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_lightly_comes_without_timm_unless_somebody_has_it() -> None:
    """timm is most of what lightly would bring in; a learner that wants it can have it afterwards."""
    words = "import sys, rela_cli.methods.simclr; assert 'timm' not in sys.modules; import timm; print(timm.__name__)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "timm", done.stderr


def test_no_views_are_no_outputs_also_in_one_pass() -> None:
    """DINO without local views asks for that."""
    assert each(nn.Linear(2, 2), [], one_pass=True) == []
