"""Probes against scikit-learn, plain torch and double loops; and that nothing is chosen on test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.schema import Probe
from rela_cli.evaluation import protocols
from rela_cli.evaluation.measures import effective_rank, knn_logits, knn_top1, lidar, rankme
from rela_cli.evaluation.protocols import (
    FEW_SHOT_PENALTY,
    PENALTIES,
    SGD_RATES,
    Task,
    accuracy,
    sgd_probe,
    some_of_each,
    stratified_tenth,
)
from rela_cli.evaluation.representation import representations
from rela_cli.numerics.logistic import solutions
from rela_cli.numerics.randomness import permutation, stream_key, torch_seed
from rela_cli.stages.probe import probe
from tests.factories import config, pixels, stats_of


def clouds(n: int, classes: int, dim: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussian clouds on features of very different scales."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    x = centres[labels] + 1.5 * torch.randn(n, dim, generator=random)
    return x * torch.logspace(-1, 1, dim) * spread + 2, labels


def task(classes: int = 4, dim: int = 10, n: int = 400, n_test: int = 300, spread: float = 1.0) -> Task:
    return Task(*clouds(n, classes, dim, 1, spread), *clouds(n_test, classes, dim, 2, spread))


def settings(**changes: object) -> Probe:
    return replace(config().probe, **changes)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------- lbfgs


def standardised(t: Task) -> tuple[np.ndarray, np.ndarray]:
    train, test = t.train.double().numpy(), t.test.double().numpy()
    mean, deviation = train.mean(0), train.std(0, ddof=1)
    return (train - mean) / deviation, (test - mean) / deviation


def objective(x: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray, penalty: float) -> float:
    logits = x @ weights + bias
    logs = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    return float(-logs[np.arange(len(x)), labels].mean() + 0.5 * penalty * (weights**2).sum())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_logistic_regression_is_scikit_learns(penalty: float) -> None:
    t = task()
    train, test = standardised(t)
    labels = t.train_labels.numpy()
    reference = LogisticRegression(C=1 / (len(train) * penalty), tol=1e-8, max_iter=10_000).fit(train, labels)
    path = solutions(torch.from_numpy(train), t.train_labels, 4, [p for p in PENALTIES if p >= penalty])
    weights = path[-1].numpy()
    ours = objective(train, labels, weights[:-1], weights[-1], penalty)
    theirs = objective(train, labels, reference.coef_.T, reference.intercept_, penalty)
    assert ours == pytest.approx(theirs, abs=1e-7)
    agree = (test @ weights[:-1] + weights[-1]).argmax(1) == reference.predict(test)
    assert agree.mean() > 0.995


def test_converged() -> None:
    t = task(dim=30)
    train = torch.from_numpy(standardised(t)[0])
    for penalty, found in zip(PENALTIES, solutions(train, t.train_labels, 4, PENALTIES), strict=True):
        weights = found.clone().requires_grad_()
        loss = F.cross_entropy(train @ weights[:-1] + weights[-1], t.train_labels)
        (loss + 0.5 * penalty * weights[:-1].square().sum()).backward()
        assert weights.grad.abs().max() < 1e-5, penalty


def test_whole_protocol_against_scikit_learn_with_the_same_penalty() -> None:
    t = task(classes=5, dim=20, n=500)
    found = probe(t, "lbfgs", settings())
    train, test = standardised(t)
    assert found["penalty"] in PENALTIES
    reference = LogisticRegression(C=1 / (len(train) * found["penalty"]), tol=1e-8, max_iter=10_000)
    expected = reference.fit(train, t.train_labels.numpy()).score(test, t.test_labels.numpy())
    assert found["top1"] == pytest.approx(expected, abs=0.005)
    assert 0.3 < found["top1"] < 0.999, "a task at its limits would compare nothing"


@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
def test_the_scale_of_features_does_not_matter(spread: float) -> None:
    assert probe(task(spread=spread), "lbfgs", settings())["top1"] == probe(task(), "lbfgs", settings())["top1"]


def test_constant_features_do_no_harm() -> None:
    t = task()
    dead = [torch.cat((x, torch.full((len(x), 2), 3.0), torch.zeros(len(x), 1)), 1) for x in (t.train, t.test)]
    found = probe(replace(t, train=dead[0], test=dead[1]), "lbfgs", settings())
    assert found["top1"] == pytest.approx(probe(t, "lbfgs", settings())["top1"], abs=0.004)


def test_a_penalty_that_is_given_is_used() -> None:
    t = task()
    given = probe(t, "lbfgs", replace(settings(), lbfgs_penalty=1e-2))
    assert given["penalty"] == 1e-2
    train, test = standardised(t)
    reference = LogisticRegression(C=1 / (len(train) * 1e-2), tol=1e-8, max_iter=10_000).fit(train, t.train_labels)
    assert given["top1"] == reference.score(test, t.test_labels)


def test_a_tolerance_that_is_given_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        protocols, "solutions", lambda *args, **kwargs: seen.append((args, kwargs)) or solutions(*args, **kwargs)
    )
    probe(task(), "lbfgs", replace(settings(), lbfgs_tolerance=1e-3))
    assert seen[0][1]["tolerance"] == seen[1][0][-1] == 1e-3
    x, labels = clouds(400, 4, 10, 1)
    x = (x - x.mean(0)) / x.std(0)
    for tolerance in (1e-2, 1e-4, 1e-6):
        (weights,) = solutions(x, labels, 4, (1e-2,), tolerance=tolerance)
        weights.requires_grad_()
        loss = F.cross_entropy(x.double() @ weights[:-1] + weights[-1], labels)
        (loss + 0.5e-2 * weights[:-1].square().sum()).backward()
        assert tolerance / 1000 < weights.grad.abs().max() <= 1.1 * tolerance


def test_the_penalty_is_chosen_without_the_test_split() -> None:
    t = task(dim=60, n=120)
    shuffled = replace(t, test_labels=t.test_labels.flip(0), test=t.test * 100)
    assert probe(t, "lbfgs", settings())["penalty"] == probe(shuffled, "lbfgs", settings())["penalty"]


def test_the_penalty_is_the_one_with_the_best_held_out_tenth() -> None:
    """A third of the labels are wrong, so a tenth that had been trained on would ask for the weakest penalty."""
    t = task(dim=60, n=300)
    wrong = torch.rand(300, generator=torch.Generator().manual_seed(5)) < 0.35
    t = replace(t, train_labels=torch.where(wrong, (t.train_labels + 1) % 4, t.train_labels))
    held = stratified_tenth(t.train_labels).numpy()
    train, labels = standardised(t)[0], t.train_labels.numpy()
    scores, leaked = {}, {}
    for penalty in PENALTIES:
        model = LogisticRegression(C=1 / ((~held).sum() * penalty), tol=1e-8, max_iter=20_000)
        scores[penalty] = model.fit(train[~held], labels[~held]).score(train[held], labels[held])
        leaked[penalty] = model.fit(train, labels).score(train[held], labels[held])
    best, trap = (max(found, key=lambda p: (found[p], p)) for found in (scores, leaked))
    assert best != trap
    assert probe(t, "lbfgs", settings())["penalty"] == best, "of equals the strongest"


def test_the_held_out_tenth_has_every_class() -> None:
    labels = torch.arange(1437) % 10
    held = stratified_tenth(labels)
    counts = torch.bincount(labels[held], minlength=10)
    assert abs(int(held.sum()) - 144) <= 6
    assert counts.min() >= 14 and counts.max() <= 15
    assert torch.equal(held, stratified_tenth(labels))


# ------------------------------------------------------------------------------------------------------------------ knn


def plain_knn(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> np.ndarray:
    b, q = ((x / x.norm(dim=1, keepdim=True)).double().numpy() for x in (bank, queries))
    votes = np.zeros((len(q), classes))
    for i, query in enumerate(q):
        cosine = np.array([float(query @ row) for row in b])
        for j in np.argsort(-cosine)[:k]:
            votes[i, int(labels[j])] += math.exp((cosine[j] - 1) / temperature)
    return votes / votes.sum(1, keepdims=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 1.0), (200, 0.1), (200, 0.05)])
def test_knn_is_a_double_loop(k: int, temperature: float) -> None:
    t = task(n=250, n_test=60)
    votes = knn_logits(t.train, t.train_labels, t.test, k, temperature, 4).double()
    expected = plain_knn(t.train, t.train_labels, t.test, k, temperature, 4)
    assert np.abs((votes / votes.sum(1, keepdim=True)).numpy() - expected).max() < 1e-4


def test_knn_is_scikit_learns() -> None:
    t = task(n=250, n_test=200)
    reference = KNeighborsClassifier(30, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1))
    predicted = reference.fit(t.train.numpy(), t.train_labels.numpy()).predict(t.test.numpy())
    ours = knn_logits(t.train, t.train_labels, t.test, 30, 0.1, 4).argmax(1).numpy()
    assert (ours == predicted).mean() > 0.99
    score = (predicted == t.test_labels.numpy()).mean()
    assert probe(t, "knn", settings(knn_k=30))["top1"] == pytest.approx(score, abs=0.01)
    assert knn_top1(t.train, t.train_labels, t.test, t.test_labels, 30, 0.1) == pytest.approx(score, abs=0.01)


def test_knn_with_more_neighbours_than_samples() -> None:
    t = task(n=20, n_test=40)
    few = knn_logits(t.train, t.train_labels, t.test, 20, 0.1, 4)
    assert torch.equal(knn_logits(t.train, t.train_labels, t.test, 1000, 0.1, 4), few)


def test_knn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    t = task(n=50, n_test=33)
    whole = knn_logits(t.train, t.train_labels, t.test, 7, 0.1, 4)
    monkeypatch.setattr("rela_cli.evaluation.measures.QUERY_BLOCK", 8)
    assert torch.allclose(knn_logits(t.train, t.train_labels, t.test, 7, 0.1, 4), whole, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_knn_at_a_small_temperature(temperature: float) -> None:
    """exp(1 / T) is beyond float32 here; the nearest neighbour decides."""
    t = task(n=100, n_test=50)
    votes = knn_logits(t.train, t.train_labels, t.test, 20, temperature, 4)
    assert votes.isfinite().all()
    expected = plain_knn(t.train, t.train_labels, t.test, 20, temperature, 4).argmax(1)
    assert (votes.argmax(1).numpy() == expected).mean() > 0.97


# ----------------------------------------------------------------------------------------------------------------- rela


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_papers_protocol_is_a_plain_loop(epochs: int) -> None:
    """Adam 3e-4, no decay, batch 128 with the last partial one, raw features."""
    t = task()
    with torch_seed(0, "probe"):
        linear = nn.Linear(10, 4)
    optimizer = torch.optim.Adam(linear.parameters(), lr=3e-4, foreach=False, fused=False)
    for epoch in range(epochs):
        order = permutation(stream_key(0, "probe", epoch), 400)
        for start in range(0, 400, 128):
            batch = order[start : start + 128]
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(linear(t.train[batch]), t.train_labels[batch]).backward()
            optimizer.step()
    logits, _ = protocols.rela_protocol(t, settings(rela_epochs=epochs))
    assert torch.allclose(logits, linear(t.test), atol=1e-5)
    expected = (linear(t.test).argmax(1) == t.test_labels).double().mean().item()
    assert probe(t, "rela", settings(rela_epochs=epochs))["top1"] == pytest.approx(expected, abs=1e-9)


def test_the_papers_protocol_takes_its_settings() -> None:
    t = task()
    base, _ = protocols.rela_protocol(t, settings(rela_epochs=1))
    for change in ({"rela_epochs": 2}, {"rela_lr": 1e-2}, {"rela_batch_size": 50}):
        assert not torch.allclose(
            protocols.rela_protocol(t, settings(**{"rela_epochs": 1, **change}))[0], base, atol=1e-4
        )


@pytest.mark.parametrize("protocol", ["rela", "lbfgs", "knn"])
def test_probes_are_repeatable_and_leave_the_generator_alone(protocol: str) -> None:
    t, before = task(n=100, n_test=50), torch.random.get_rng_state()
    first = probe(t, protocol, settings(rela_epochs=2))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    second = probe(t, protocol, settings(rela_epochs=2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


# --------------------------------------------------------------------------------------------------- accuracy and ranks


# ------------------------------------------------------------------------------------------------------------- sgd grid


def one_rate(x: Tensor, labels: Tensor, classes: int, rate: float, chosen: Probe) -> nn.Linear:
    """The same by torch's own optimizer, scheduler and loss, one rate at a time, in float64."""
    linear = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=rate * chosen.sgd_grid_batch_size / 256, momentum=0.9)
    steps = chosen.sgd_grid_epochs * math.ceil(len(x) / chosen.sgd_grid_batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(chosen.sgd_grid_epochs):
        for batch in permutation(stream_key(0, "probe", epoch), len(x)).split(chosen.sgd_grid_batch_size):
            optimizer.zero_grad()
            F.cross_entropy(linear(x[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return linear


def test_the_grid_is_torchs_own_sgd_at_each_rate() -> None:
    t, chosen = task(), settings(sgd_grid_epochs=3, sgd_grid_batch_size=64)
    x, rates = t.train.double(), (0.01, 0.3)
    found = sgd_probe(x, t.train_labels, t.classes, rates, chosen)
    for weights, rate in zip(found, rates, strict=True):
        linear = one_rate(x, t.train_labels, t.classes, rate, chosen)
        assert torch.allclose(weights[:-1], linear.weight.T, atol=1e-10)
        assert torch.allclose(weights[-1], linear.bias, atol=1e-10)


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_the_grids_rate_is_chosen_on_held_out_train(spread: float) -> None:
    t, chosen = task(spread=spread), settings(sgd_grid_epochs=10, sgd_grid_batch_size=64)
    found = probe(t, "sgd_grid", chosen)
    held_out = stratified_tenth(t.train_labels)
    x, labels = t.train.double(), t.train_labels
    scores = [
        (one_rate(x[~held_out], labels[~held_out], t.classes, rate, chosen)(x[held_out]).argmax(1) == labels[held_out])
        .double()
        .mean()
        .item()
        for rate in SGD_RATES
    ]
    assert scores[SGD_RATES.index(found["rate"])] == pytest.approx(max(scores), abs=0.03)
    shuffled = replace(t, test=t.test.flip(0), test_labels=t.test_labels.flip(0).roll(1))
    assert probe(shuffled, "sgd_grid", chosen)["rate"] == found["rate"], "test has no say"


# ------------------------------------------------------------------------------------------------------------- few shot


def test_few_shot_is_scikit_learns_mean_over_draws() -> None:
    t, chosen = task(), settings(few_shot_k=3, few_shot_draws=4)
    train, test = standardised(t)
    scores = []
    for draw in range(4):
        rows = some_of_each(t.train_labels, 3, draw)
        assert torch.bincount(t.train_labels[rows]).tolist() == [3, 3, 3, 3]
        model = LogisticRegression(C=1 / (FEW_SHOT_PENALTY * len(rows)), tol=1e-8, max_iter=5000)
        scores.append(model.fit(train[rows], t.train_labels[rows]).score(test, t.test_labels))
    found = probe(t, "few_shot", chosen)
    assert found["top1"] == pytest.approx(np.mean(scores), abs=2e-3)
    assert found["deviation"] == pytest.approx(np.std(scores, ddof=1), abs=3e-3)
    assert len({tuple(some_of_each(t.train_labels, 3, draw).tolist()) for draw in range(4)}) == 4


def test_few_shot_takes_what_there_is() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert sorted(some_of_each(labels, 2, 0).tolist())[-1] == 3
    assert len(some_of_each(labels, 2, 0)) == 3


def test_accuracy_is_exact() -> None:
    logits = torch.zeros(7, 12)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    for i, rank in enumerate([1, 1, 1, 2, 5, 6, 12]):  # where the right class stands
        order = [c for c in range(12) if c != i]
        order.insert(rank - 1, i)
        logits[i, order] = torch.arange(12, 0, -1).float()
    assert accuracy(logits, labels) == {"top1": 3 / 7, "top5": 5 / 7}
    assert "top5" not in accuracy(logits[:, :10], labels)
    assert accuracy(logits[:, :2], labels.clamp(max=1)).keys() == {"top1"}


def test_effective_rank() -> None:
    random = torch.Generator().manual_seed(0)
    isotropic = torch.linalg.qr(torch.randn(500, 20, generator=random) @ torch.eye(20)).Q
    isotropic = isotropic - isotropic.mean(0)
    assert effective_rank(torch.linalg.qr(isotropic).Q) == pytest.approx(20, abs=0.1)
    rank_one = torch.randn(500, 1, generator=random) @ torch.randn(1, 20, generator=random)
    assert effective_rank(rank_one) == pytest.approx(1, abs=1e-3)
    assert effective_rank(rank_one + 100) == pytest.approx(1, abs=1e-3), "a common offset is no dimension"
    assert effective_rank(torch.ones(10, 5)) == pytest.approx(1, abs=1e-6)


def test_effective_rank_is_its_formula() -> None:
    x = np.random.RandomState(0).randn(100, 8) * np.arange(1, 9)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    share = values / values.sum()
    assert effective_rank(torch.from_numpy(x)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), abs=1e-6)


# ----------------------------------------------------------------------------------------------------- representations


def test_representations_are_in_eval_mode_in_order_and_normalised() -> None:
    images = pixels(37, 8)
    data = stats_of(images)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    backbone(torch.randn(16, 3, 8, 8))  # statistics of its own
    backbone.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    found = representations(backbone, images, data, 16)
    assert backbone.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    x = (images.float() / 255 - data.mean.view(3, 1, 1)) / data.std.view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(found, backbone.eval()(x), atol=1e-5)
    assert found.dtype == torch.float32
    assert not found.is_inference()


def test_a_last_partial_block_gives_the_same_bits() -> None:
    images = pixels(40, 8)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 16))
    whole = representations(backbone, images, stats_of(images), 16)
    assert torch.equal(representations(backbone, images[:35], stats_of(images), 16), whole[:35])


# --------------------------------------------------------------------------------------------------- retrieval, ranks


@pytest.mark.parametrize("k", [1, 7, 25, 400])
def test_retrieval_is_a_double_loop(k: int) -> None:
    t = task(n=120, n_test=40)
    found = probe(t, "knn", settings(knn_k=k))
    b, q = ((x / x.norm(dim=1, keepdim=True)).double().numpy() for x in (t.train, t.test))
    depth = min(k, len(b))
    averages, hits = [], {1: [], 5: [], 10: []}
    for i, query in enumerate(q):
        order = sorted(range(len(b)), key=lambda j: -float(query @ b[j]))[:depth]
        right = [int(t.train_labels[j] == t.test_labels[i]) for j in order]
        precisions = [sum(right[: place + 1]) / (place + 1) for place in range(depth) if right[place]]
        averages.append(sum(precisions) / min(depth, int((t.train_labels == t.test_labels[i]).sum())))
        for r, hit in hits.items():
            hit.append(any(right[:r]))
    assert found[f"map@{depth}"] == pytest.approx(np.mean(averages), abs=1e-9)
    for r, hit in hits.items():
        assert found.get(f"recall@{r}") == (pytest.approx(np.mean(hit)) if r <= depth else None)


def test_map_over_everything_is_scikit_learns_average_precision() -> None:
    from sklearn.metrics import average_precision_score

    t = task(n=80, n_test=30)
    b, q = (F.normalize(x, dim=1).double().numpy() for x in (t.train, t.test))
    wanted = [average_precision_score(t.train_labels == t.test_labels[i], b @ q[i]) for i in range(len(q))]
    assert probe(t, "knn", settings(knn_k=80))["map@80"] == pytest.approx(np.mean(wanted), abs=1e-6)


def test_rankme_is_its_formula() -> None:
    x = np.random.RandomState(0).randn(100, 8) * np.arange(1, 9) + 3
    values = np.linalg.svd(x, compute_uv=False)
    share = values / np.abs(values).sum() + 1e-7
    assert rankme(torch.from_numpy(x)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)
    assert rankme(torch.ones(10, 5)) == pytest.approx(1, abs=1e-4)


def test_lidar_is_its_formula() -> None:
    import scipy.linalg

    x = np.random.RandomState(0).randn(40, 1, 6) * np.arange(1, 7) + 0.5 * np.random.RandomState(1).randn(40, 10, 6)
    means = [views.mean(0) for views in x]
    grand = np.mean(means, axis=0)
    between = sum(np.outer(m - grand, m - grand) for m in means) / 39
    within = sum(np.outer(v - m, v - m) for views, m in zip(x, means, strict=True) for v in views) / (40 * 9)
    root = np.linalg.inv(scipy.linalg.sqrtm(within + 1e-4 * np.eye(6)))
    values = np.linalg.eigvalsh(root @ between @ root)
    share = values / values.sum() + 1e-7
    assert lidar(torch.from_numpy(x)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-8)


def test_lidar_counts_what_tells_images_apart() -> None:
    random = torch.Generator().manual_seed(0)
    images, noise = torch.randn(60, 1, 3, generator=random), torch.randn(60, 8, 9, generator=random)
    views = torch.cat((images.expand(-1, 8, -1), torch.zeros(60, 8, 6)), dim=2) + 0.1 * noise
    assert lidar(views) == pytest.approx(3, abs=0.4)
    assert rankme(views.flatten(0, 1)) > lidar(views), "noise is no information, and RankMe cannot know"
