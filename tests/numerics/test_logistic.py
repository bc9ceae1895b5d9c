"""The solver of the lbfgs protocol: optima against scikit-learn, and tasks at the edges of what it may be given."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from rela_cli.config.schema import Probe
from rela_cli.evaluation.protocols import PENALTIES, Task, affine, standardised, stratified_tenth
from rela_cli.numerics import logistic
from rela_cli.numerics.logistic import Samples, descend, inverse_curvature, solutions, with_one
from rela_cli.stages.probe import probe
from tests.evaluation.test_protocols import task
from tests.factories import config


def slope(features: Tensor, labels: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """The gradient by its formula, in float64: X'(p - y) / N + penalty * weights, the bias without the last."""
    x = torch.cat((features.double(), torch.ones(len(features), 1, dtype=torch.float64)), dim=1)
    truth = torch.nn.functional.one_hot(labels, weights.shape[1])
    free = torch.ones(len(weights), 1, dtype=torch.float64)
    free[-1] = 0
    return x.T @ (torch.softmax(x @ weights, dim=1) - truth) / len(x) + penalty * free * weights


def largest(t: Task, found: Sequence[Tensor], penalties: Sequence[float] = PENALTIES) -> float:
    train = standardised(t)[0]
    pairs = zip(penalties, found, strict=True)
    return max(float(slope(train, t.train_labels, weights, penalty).abs().max()) for penalty, weights in pairs)


def reference(features: Tensor, labels: Tensor, penalty: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / (len(features) * penalty), tol=1e-8, max_iter=20_000)
    return model.fit(features.double().numpy(), labels.numpy())


@pytest.mark.parametrize("share", [False, True])
def test_every_penalty_is_scikit_learns(share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a curvature for each class, with one that all share, and with most samples counted as the mean."""
    monkeypatch.setattr(logistic, "MANY", 0 if share else 2**28)
    monkeypatch.setattr(logistic, "SAMPLE_BLOCK", 64)
    t = task(dim=12, n=500)
    train = standardised(t)[0]
    found = solutions(train, t.train_labels, 4, PENALTIES)
    assert largest(t, found) < 1.01e-6
    for penalty, weights in zip(PENALTIES, found, strict=True):
        theirs = reference(train, t.train_labels, penalty)
        assert torch.allclose(
            affine(train, weights).softmax(1), torch.from_numpy(theirs.predict_proba(train.double().numpy())), atol=1e-3
        )


@pytest.mark.parametrize("penalty", [1e-3, 1e-5])
def test_classes_that_a_plane_separates(penalty: float) -> None:
    """Without the penalty the weights would grow for ever; the five start anew, without the stronger ones before."""
    labels = torch.arange(300) % 3
    far = 20 * torch.eye(3, 6)[labels] + torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    t = Task(far, labels, far, labels)
    found = solutions(standardised(t)[0], labels, 3, [penalty])
    assert largest(t, found, [penalty]) < 1.01e-6
    assert (affine(standardised(t)[0], found[0]).argmax(1) == labels).all()


def test_one_class_and_features_that_do_not_vary() -> None:
    flat = torch.cat((torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.full((50, 3), 7.0)), dim=1)
    alone = torch.zeros(50, dtype=torch.long)
    assert not solutions(standardised(Task(flat, alone, flat, alone))[0], alone, 1, [1e-3])[0].any()
    t = Task(flat, torch.arange(50) % 2, flat, torch.arange(50) % 2)
    found = solutions(standardised(t)[0], t.train_labels, 2, PENALTIES)
    assert largest(t, found) < 1.01e-6
    assert not found[-1][2:5].any(), "what says nothing has no weight"


def test_fewer_samples_than_features_and_copies_of_one() -> None:
    few = torch.randn(30, 100, generator=torch.Generator().manual_seed(0))
    same = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))[:, [0, 1, 2, 0, 0, 1]]
    for features in (few, same):
        t = Task(features, torch.arange(len(features)) % 3, features, torch.arange(len(features)) % 3)
        assert largest(t, solutions(standardised(t)[0], t.train_labels, 3, PENALTIES)) < 1.01e-6


def test_float64_takes_over_where_rounding_ends_float32() -> None:
    """A gradient of 1e-10 is out of the reach of float32."""
    t = task(n=200)
    assert largest(t, solutions(standardised(t)[0], t.train_labels, 4, PENALTIES, tolerance=1e-10)) < 1.1e-10


def test_the_penalty_is_the_one_of_optima_in_float64() -> None:
    for seed in range(4):
        t = task(classes=5, dim=40, n=300, spread=float(seed + 1))
        labels = torch.where(torch.rand(300, generator=torch.Generator().manual_seed(seed)) < 0.3, 0, t.train_labels)
        t = Task(t.train, labels, t.test, t.test_labels)
        train, held = standardised(t)[0], stratified_tenth(labels)
        scores = {}
        for penalty in PENALTIES:
            model = reference(train[~held], labels[~held], penalty)
            scores[model.score(train[held].double().numpy(), labels[held].numpy()), penalty] = penalty
        assert probe(t, "lbfgs", settings())["penalty"] == scores[max(scores)]


def settings() -> Probe:
    return config().probe


def test_the_curvature_saves_most_of_the_way() -> None:
    """Looks at all samples, against L-BFGS that begins with the identity: counted, not timed."""
    t = task(classes=6, dim=60, n=2000)
    samples = Samples(standardised(t)[0], t.train_labels, 6)
    start, looks = torch.zeros(61, 6, dtype=torch.float64), []
    for curvature in (lambda w: inverse_curvature(samples, w, 1e-3), lambda _: lambda slope: slope):
        seen: list[Tensor] = []

        def loss(w: Tensor, seen: list[Tensor] = seen) -> tuple[float, Tensor]:
            seen.append(w)
            return samples.loss(w, 1e-3, torch.float64)

        assert descend(loss, curvature, start, 1e-6)[1] <= 1e-6
        looks.append(len(seen))
    assert looks[0] < 0.7 * looks[1]


def test_curvature_is_the_hessians_block_of_each_class() -> None:
    """By autograd in float64, where all samples are counted; the bias has no penalty."""
    random = torch.Generator().manual_seed(0)
    x, labels = torch.randn(300, 6, generator=random) + 0.5, torch.arange(300) % 3
    weights = torch.randn(7, 3, generator=random, dtype=torch.float64) / 3
    samples = Samples(x, labels, 3)
    assert samples.covariance.allclose(with_one(x).T @ with_one(x) / 300, atol=1e-6)

    def objective(flat: torch.Tensor) -> torch.Tensor:
        w = flat.view(7, 3)
        return cross_entropy(with_one(x.double()) @ w, labels) + 0.05 * w[:-1].square().sum()

    hessian = torch.autograd.functional.hessian(objective, weights.flatten()).view(7, 3, 7, 3)
    slope = torch.randn(7, 3, generator=random, dtype=torch.float64)
    expected = torch.stack([torch.linalg.solve(hessian[:, c, :, c], slope[:, c]) for c in range(3)], dim=1)
    assert inverse_curvature(samples, weights, 0.1)(slope).allclose(expected, rtol=1e-4, atol=1e-4)
