"""Each method against its paper's formula in float64, its gradients, and the running average of its target network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from rela_cli.methods.base import Average, Method
from rela_cli.parts import build
from rela_cli.stages.train import Trainer

from .factories import config, fit, trainer

METHODS = ("byol", "simclr", "dino")
SIZES = {
    "byol": ("method.hidden_dim=24", "method.projection_dim=12"),
    "simclr": ("method.hidden_dim=24", "method.projection_dim=12"),
    "dino": ("method.hidden_dim=24", "method.projection_dim=12", "method.prototypes=20"),
}
TARGETS = {"byol": "target", "dino": "teacher"}


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
    method: Method = build(part, backbone=Flat(), feature_dim=16)
    if name in TARGETS:  # else the two networks are equal and an exchange of them would not be seen
        with torch.no_grad():
            for parameter in getattr(method, TARGETS[name]).parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def two_views(n: int = 10) -> list[Tensor]:
    return list(torch.randn(2, n, 3, 4, 4, generator=torch.Generator().manual_seed(1)))


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
    """Algorithm 1 of the paper: -P_t log P_s over the two pairs of different views."""
    backbone, projection = method.teacher.network
    t = [((dino_scores(v, backbone, projection) - center) / temperature).softmax(1) for v in views]
    s = [(dino_scores(v, method.backbone, method.head) / 0.1).log_softmax(1) for v in views]
    return (-(t[0] * s[1]).sum(1).mean() - (t[1] * s[0]).sum(1).mean()) / 2


FORMULAS = {"byol": byol, "simclr": simclr, "dino": lambda m, v: dino(m, v, torch.zeros(20).double(), 0.04)}


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_the_papers(name: str) -> None:
    """In float32 to 1e-5: DINO divides scores by 0.04, which makes 25 of each rounding. In float64 to 1e-9."""
    method = made(name).train()
    exact, views = copy.deepcopy(method).double(), [v.double() for v in two_views()]
    expected = FORMULAS[name](exact, views).item()
    assert method(two_views()).item() == pytest.approx(expected, abs=1e-5 if name == "dino" else 1e-6)
    assert exact(views).item() == pytest.approx(expected, abs=1e-9)


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


def test_reference_head_sizes() -> None:
    """BYOL D-2D-256 and 256-2D-256; DINO D-2048-256 and 2048 prototypes."""
    byol = build(config("method=byol").method, backbone=Flat(), feature_dim=16)
    shapes = [[tuple(p.shape) for p in part.parameters() if p.ndim == 2] for part in (byol.projector, byol.predictor)]
    assert shapes == [[(32, 16), (256, 32)], [(32, 256), (256, 32)]]
    head = build(config("method=dino").method, backbone=Flat(), feature_dim=16).head
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
    fit(loop, lambda: touched[loop.phase].update(names_with_gradient(loop)))
    assert touched == {1: backbone | transfer, 2: backbone | heads}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_gradient_reaches_the_target_network(name: str) -> None:
    loop = loop_of(name, target_dim=None)
    target = getattr(loop.trainee.method, TARGETS[name])
    assert list(target.parameters())
    assert not any(p.requires_grad for p in target.parameters())
    fit(loop, steps=1)
    assert all(p.grad is None for p in target.parameters())
    assert not target(torch.randn(4, 3, 8, 8)).requires_grad
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
    online = method.online() if name == "byol" else method.student()
    target = getattr(method, TARGETS[name]).network
    return tuple({n: p.detach().clone() for n, p in m.named_parameters()} for m in (target, online))  # type: ignore[return-value]


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_one_update_of_the_running_average(name: str, phase: int) -> None:
    """m * target + (1 - m) * online, after the step, backbone and projector, in both phases."""
    loop = loop_of(name, "method.ema=0.9", "switch=never", target_dim=8 if phase == 1 else None)
    before, start = follower(loop, name)
    fit(loop, steps=1)
    assert loop.phase == phase
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
        costs = loop.step_flops()
        assert costs.keys() == {1, 2}
        assert min(costs.values()) > 0
        assert all(torch.equal(v, before[k]) for k, v in loop.trainee.state_dict().items())
        assert all(p.grad is None for p in loop.trainee.parameters())
        assert (loop.phase, loop.step) == (1, 0)


@pytest.mark.parametrize("name", METHODS)
def test_phase_2_learns(name: str) -> None:
    """On a handful of images the loss has to fall; a frozen learner or a dead loss would not."""
    loop = loop_of(name, "epochs=12", "optimizer.lr=3e-3", target_dim=None)
    losses = [record["loss"] for record in fit(loop).records]
    assert sum(losses[-3:]) < sum(losses[:3])
