"""matching.targets=live: the prior looks at every view; on the clean view it gives what the cache holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rela_cli.config.compose import Composer, compose
from rela_cli.config.overrides import parse
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Config
from rela_cli.data.batches.cache import read_split, read_stats
from rela_cli.errors import ConfigError
from rela_cli.pipeline import estimate, pipeline
from rela_cli.pipeline.footprint import of_run
from rela_cli.pipeline.run import Run
from rela_cli.stages.train import step_flops
from rela_cli.store.row_file import RowFile
from rela_cli.training.live import LiveTargets, live_targets
from rela_cli.training.trainer import Trainer, parts_of
from rela_cli.transports.base import Transport
from rela_cli.transports.identity import Identity
from tests.factories import config, pixels, stats_of, trainer
from tests.promises.harness import STEPS, SWITCH, Killed, differing, ending, keep_until, small, train, untimed

BLOCK = 64
FAKE = ("dataset=fake", "dataset.n=64", "dataset.n_test=20", "dataset.size=8", "learner.width=4", "runtime.threads=1")
WORDS = (*FAKE, "prior=random", "prior.width=4", "epochs=1", "batch_size=16", f"runtime.block_size={BLOCK}")
PROBED = ("probe.protocols=[knn]", "probe.knn_k=5", "runtime.eval_every_epochs=0")
TRANSPORTS = ["whitening", "pca", "zca", "standardize", "identity", "random_projection"]


def made(folder: Path, *words: str) -> Config:
    return config(*WORDS, *PROBED, *words, f"paths.outputs={folder}")


def opened(made: Config, width: int) -> tuple[LiveTargets, Tensor]:
    """The live targets of a config whose cache is there, and its train images."""
    run = Run(made)
    split, data = read_split(run.images, "train", run.dataset), read_stats(run.images)
    assert split is not None and isinstance(split.images, Tensor)
    return live_targets(made, split, data, run.features.folders, run.targets.folder, width), split.images


def normalised(images: Tensor, of: LiveTargets) -> Tensor:
    """The clean view, as a network is fed it."""
    return (images.float() / 255 - of.mean) / of.std


# ------------------------------------------------------------------------------------------ the numbers


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_live_targets_of_the_clean_view_are_the_cached_ones(cache: Path, transport: str) -> None:
    """To 1e-5 those in float64 of the cached features; as near to the stored ones as fp16 is."""
    asked = made(cache, f"transport={transport}")
    pipeline.run(asked, until="transport")
    live, images = opened(asked, 8)
    (found,) = live([normalised(images, live)])
    run = Run(asked)
    mapping = instantiate(asked.transport)
    mapping.fit(RowFile(run.features.folder / "train.safetensors", "features").blocks(BLOCK))
    features = load_file(run.features.folder / "train.safetensors")["features"]
    exact = mapping(features)[:, :8]
    stored = load_file(run.targets.folder / "train.safetensors")["targets"][:, :8].float()
    scale = exact.abs().max().item()
    assert found.dtype == torch.float32 and not found.requires_grad
    assert (found - exact).abs().max().item() < 1e-5 * scale
    assert (found - stored).abs().max().item() < 1e-3 * scale


def test_the_prior_sees_the_pixels_of_the_view() -> None:
    """The views go back to 8 bits, exactly; a small one is enlarged to the images' size."""
    images = pixels(6, 12)
    live = LiveTargets(Seen(), Identity(), 3, stats_of(images), torch.float32)
    live([normalised(images, live), normalised(images, live).flip(3)])
    assert torch.equal(live.prior.seen[0], images) and torch.equal(live.prior.seen[1], images.flip(3))
    live([normalised(images[:, :, 2:8, 2:8], live)])
    assert live.prior.seen[2].shape == (6, 3, 12, 12) and live.prior.seen[2].dtype == torch.uint8


class Seen(nn.Module):
    """A prior that notes what it is shown; the mean of each channel."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return images.float().mean((2, 3)) * self.factor


def test_features_beyond_fp16_become_its_largest_number() -> None:
    images = pixels(4, 8)
    live = LiveTargets(Seen(1e6), Identity(), 3, stats_of(images), torch.float16)
    (found,) = live([normalised(images, live)])
    assert torch.equal(found, torch.full((4, 3), 65504.0))


def loop_of(*words: str, n: int = 64) -> Trainer:
    """A trainer with a live prior of three features, which are also the width of its targets."""
    loop = small(*words, target_dim=3)
    assert loop.goals is not None
    live = LiveTargets(Seen(), Identity(), 3, loop.data, torch.float16)  # type: ignore[arg-type]
    loop.goals = replace(loop.goals, live=live)
    return loop


def live_of(loop: Trainer) -> LiveTargets:
    assert loop.goals is not None and loop.goals.live is not None
    return loop.goals.live


def test_each_view_is_matched_to_its_own_target() -> None:
    loop = loop_of()
    rows = torch.arange(16)
    views = loop.make_views(loop.images[rows], rows, 0)  # type: ignore[index]
    loop.trainee.eval()
    found = loop.loss_of(views, rows, 0)
    assert loop.trainee.matching is not None
    losses = [
        1 - F.cosine_similarity(loop.trainee.matching.transfer(loop.trainee.method.backbone(view)), target).mean()
        for view, target in zip(views, live_of(loop)(views), strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(losses).mean())
    assert not torch.equal(*live_of(loop)(views))


def test_the_prior_is_not_trained_and_leaves_with_phase_1() -> None:
    loop = loop_of(*SWITCH)
    live = live_of(loop)
    rows = torch.arange(16)
    loop.loss_of(loop.make_views(loop.images[rows], rows, 0), rows, 0).backward()  # type: ignore[index]
    assert live.prior.factor.grad is None
    assert all(live.prior.factor is not weight for weight in loop.trainable)
    loop.start_phase(2)
    assert loop.goals is None


def test_accumulated_parts_match_their_own_views() -> None:
    """The gradient of a batch in two parts is that in one, where no batch norm sees fewer images."""
    gradients = []
    for parts in (1, 2):
        loop = loop_of(f"accumulate={parts}")
        loop.trainee.eval()
        rows = torch.arange(16)
        for some, images in parts_of(rows, loop.images[rows], parts, loop.module):  # type: ignore[index]
            (loop.loss_of(loop.make_views(images, some, 0), some, 0) / parts).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in loop.trainable if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------ the cost


def test_the_priors_passes_are_in_the_cost() -> None:
    """FLOPs of a step are those of the cached one, and of the prior and the map on both views."""
    cached, live = trainer(target_dim=3), trainer(target_dim=3)
    prior = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert live.goals is not None
    teacher = LiveTargets(AsFloat(prior), Identity(), 3, live.data, torch.float16)  # type: ignore[arg-type]
    live.goals = replace(live.goals, live=teacher)
    a_pass = 16 * 2 * 3 * 5 * 9 * 6 * 6  # images, multiply and add, channels in and out, taps, places
    assert step_flops(live)[1] - step_flops(cached)[1] == 2 * a_pass
    assert step_flops(live)[2] == step_flops(cached)[2]


class AsFloat(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float())  # type: ignore[no-any-return]


def test_a_plan_counts_the_prior_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, live = (of_run(Run(made(cache, *more))) for more in ((), ("matching.targets=live",)))
    assert live.outlook is not None and cached.outlook is not None
    a_pass = live.outlook.block.flops / BLOCK
    assert a_pass > 0 and live.flops == pytest.approx(cached.flops + 2 * a_pass)
    more = live.train().total() - cached.train().total()
    assert more >= live.outlook.weights > 0
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 0.0)
    rate = estimate.trial(live, 1)
    assert rate.matching > 0 and rate.flops == live.flops


# ------------------------------------------------------------------------------------------ whole runs


def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    """With a batch in parts and bf16; before the switch and after it."""
    make: Callable[[], Trainer] = lambda: loop_of(*SWITCH, "accumulate=2", "runtime.precision=bf16")  # noqa: E731
    expected = ending(train(tmp_path / "plain", make()), tmp_path / "plain")
    for step in (3, 6):
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Killed):
            train(folder, make(), every=0, stop=step + 1)
        keep_until(folder, step)
        found = ending(train(folder, make()), folder)
        assert differing(untimed(found), untimed(expected)) == [], step
    assert len(expected["metrics"]) > 0 and expected["position"]["switch_step"] < STEPS


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "runs").glob("*-*/result.json")]
    return {result["settings"]["matching"].get("targets", "cached"): result for result in found}


def test_a_whole_run_beside_a_cached_one(tmp_path: Path) -> None:
    """They share features and targets, have names of their own, and differ in what training cost."""
    cached = Run(made(tmp_path, "switch=never"))
    live = Run(made(tmp_path, "switch=never", "matching.targets=live"))
    for run in (cached, live):
        assert pipeline.run(run.config).status == "run"
        assert pipeline.run(run.config).status == "found"
    assert (live.targets.hash, live.features.hash) == (cached.targets.hash, cached.features.hash)
    assert live.hash != cached.hash and "-random-live-" in live.folder.name
    found = results(tmp_path)
    passes = 2 * found["live"]["samples_seen"] * found["live"]["flops"]["extract"] / 64
    assert found["live"]["flops"]["train"] - found["cached"]["flops"]["train"] >= passes > 0
    assert found["live"]["flops"]["extract"] == found["cached"]["flops"]["extract"]


def test_what_was_there_before_the_key_keeps_its_name(tmp_path: Path) -> None:
    """Of the plain method and of cached targets no setting says that they are cached."""
    assert "targets" not in Run(made(tmp_path)).settings["matching"]
    assert Run(made(tmp_path, "matching.targets=live")).settings["matching"]["targets"] == "live"
    plain = [Run(config(*FAKE, "prior=none", *more)).hash for more in ((), ("matching.targets=live",))]
    assert plain[0] == plain[1]


class WithoutLoad:
    """A transport from before `load`."""

    fit, __call__, state, facts = Transport.fit, Transport.__call__, Transport.state, Transport.facts


def test_a_transport_that_cannot_be_loaded_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = made(cache, "transport=whitening", "matching.targets=live")
    pipeline.run(asked, until="transport")
    monkeypatch.setattr("rela_cli.transports.base.instantiate", lambda part: WithoutLoad())
    with pytest.raises(ConfigError, match=r"needs transport=whitening to have a method load\(state\)"):
        opened(asked, 8)


def test_live_without_a_prior_is_said_to_have_no_effect() -> None:
    composer = Composer(parse(["matching.targets=live", "prior=none"]))
    assert not composer.check().is_live
    assert list(composer.notes) == ["matching.targets=live has no effect: prior=none is the method by itself"]


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of cached, live"):
        compose(["matching.targets=alive"])
