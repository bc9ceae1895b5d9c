"""Priors: reproducible, right in their maths, and weights files taken whole or refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.config.parts import instantiate
from rela_cli.data.batches.cache import ImageStats
from rela_cli.errors import ConfigError, RelaError
from rela_cli.learners.build import build_backbone
from rela_cli.priors.base import Prior
from rela_cli.priors.patches import EPSILON, Patches, contrast_normalised
from rela_cli.stages.extract import run_prior
from tests.factories import config, pixels, stats_of

IMAGES = pixels(64, 12)
STATS = stats_of(IMAGES)


def prior(*overrides: str, data: ImageStats = STATS, images: Tensor = IMAGES) -> Prior:
    made: Prior = instantiate(config(*overrides).prior, data=data)
    made.fit(images)
    return made.eval()


def features(made: Prior, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return made(images)


# ---------------------------------------------------------------------------------------------------------- all of them

SMALL = {
    "random": ("prior=random", "prior.width=4"),
    "random_learner": ("prior=random_learner",),
    "patches": ("prior=patches", "prior.patches=16"),
}


@pytest.mark.parametrize("name", SMALL)
def test_reproducible_and_of_its_own_seed(name: str) -> None:
    first = features(prior(*SMALL[name]))
    torch.manual_seed(77)
    before = torch.random.get_rng_state()
    assert torch.equal(features(prior(*SMALL[name])), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(features(prior(*SMALL[name], "seed=5")), first), "the run's seed is not the prior's"
    assert not torch.allclose(features(prior(*SMALL[name], "prior.seed=1")), first, rtol=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_shape_and_independence_of_the_batch(name: str) -> None:
    made = prior(*SMALL[name])
    whole = features(made)
    assert whole.shape == (64, made.feature_dim)
    assert whole.dtype == torch.float32
    assert whole.std(0).max() > 0
    assert torch.allclose(features(made, IMAGES[5:6]), whole[5:6], rtol=1e-3, atol=1e-5)


def test_random_learner_with_seed_0_is_the_learner_of_run_seed_0() -> None:
    made = config("prior=random_learner", "seed=0")
    backbone = build_backbone(made.learner, 0, 12)
    state = prior("prior=random_learner").backbone.state_dict()
    assert state.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    x = (IMAGES.float() / 255 - STATS.mean.view(3, 1, 1)) / STATS.std.view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(features(prior("prior=random_learner")), backbone.eval()(x), atol=1e-5)


def test_random_is_a_network_of_its_own() -> None:
    learner = build_backbone(config().learner, 0, 12)
    made = prior("prior=random", "prior.width=4")
    assert not torch.equal(made.backbone.conv1.weight, learner.conv1.weight)
    assert prior("prior=random").feature_dim == 512


# -------------------------------------------------------------------------------------------------------------- patches


def test_patches_are_filters_whitened_by_numpys_zca() -> None:
    """Coates, Lee and Ng 2011, in float64: contrast normalisation, ZCA with epsilon, unit norm, whitened again."""
    made = prior("prior=patches", "prior.patches=16", "prior.patch_size=3")
    drawn = made.draw(IMAGES).numpy()
    patches = drawn - drawn.mean(1, keepdims=True)
    patches /= np.sqrt(patches.var(1, ddof=1, keepdims=True) + 10 / 255**2)
    assert np.allclose(contrast_normalised(torch.from_numpy(drawn)).numpy(), patches)
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    zca = vectors @ np.diag(1 / np.sqrt(np.maximum(values, 0) + EPSILON)) @ vectors.T
    whitened = (patches[:16] - mean) @ zca
    filters = whitened / np.linalg.norm(whitened, axis=1, keepdims=True) @ zca
    assert np.abs(made.weight.double().flatten(1).numpy() - filters).max() < 1e-5
    assert np.abs(made.bias.double().numpy() + filters @ mean).max() < 1e-5


def test_whitening_whitens() -> None:
    """A filter's response to a patch is the inner product of the two after whitening: variance near one a filter."""
    made = prior("prior=patches", "prior.patches=16", "prior.patch_size=3")
    normalised = contrast_normalised(made.draw(IMAGES))
    responses = normalised @ made.weight.double().flatten(1).T + made.bias.double()
    values = torch.linalg.eigvalsh(torch.cov(normalised.T)).clamp(min=0)
    shrunk = values / (values + EPSILON)
    assert responses.mean(0).abs().max() < 1e-4
    assert float(responses.var(0).max()) <= float(shrunk.max()) + 1e-4
    assert float(responses.var(0).mean()) > 0.1


def test_patches_come_from_the_images_everywhere() -> None:
    made = Patches(patches=4, patch_size=5, pool=2, seed=0, data=STATS)
    numbered = torch.arange(64)[:, None, None, None].expand(64, 3, 12, 12).to(torch.uint8)
    which = (made.draw(numbered)[:, 0] * 255).round().long()
    assert torch.bincount(which, minlength=64).min() > 100_000 / 64 * 0.8
    places = torch.arange(144).view(1, 1, 12, 12).expand(2, 3, 12, 12).to(torch.uint8)
    corner = (made.draw(places)[:, 0] * 255).round().long()
    assert sorted(corner.unique().tolist()) == [12 * y + x for y in range(8) for x in range(8)]
    one = made.draw(places)[0].view(3, 5, 5) * 255
    assert torch.allclose(one - one[0, 0, 0], (places[0, :, :5, :5] - places[0, 0, 0, 0]).double())


def test_two_sided_relu_and_pooling() -> None:
    made = prior("prior=patches", "prior.patches=8", "prior.patch_size=3", "prior.pool=2")
    x = IMAGES.float() / 255
    x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 0.01)
    response = F.conv2d(x, made.weight, made.bias)  # 10 x 10
    cells = [response[:, :, y : y + 5, z : z + 5] for y in (0, 5) for z in (0, 5)]
    both = [torch.cat((c.clamp(min=0), (-c).clamp(min=0)), 1).mean((2, 3)) for c in cells]
    assert torch.allclose(features(made), torch.stack(both, -1).flatten(1), atol=1e-5)
    assert made.feature_dim == 2 * 8 * 4


def test_patches_do_not_care_for_brightness_and_contrast() -> None:
    """To rounding in uint8 and the 0.01 that keeps flat images calm."""
    made = prior("prior=patches", "prior.patches=16")
    half = (IMAGES.float() * 0.5 + 60).round().to(torch.uint8)
    a, b = features(made), features(made, half)
    assert float(F.cosine_similarity(a, b, dim=1).min()) > 0.99


def test_flat_images_give_no_nan() -> None:
    flat = torch.full((8, 3, 12, 12), 7, dtype=torch.uint8)
    assert features(prior("prior=patches", "prior.patches=8", images=flat), flat).isfinite().all()


def test_a_patch_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prior.patch_size=13 is larger than the images, 12 px"):
        prior("prior=patches", "prior.patch_size=13")


class Odd(Prior):
    """One of somebody's own, which says another width than it gives, or gives tokens."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.feature_dim = shape, 4

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), *self.shape)


@pytest.mark.parametrize("shape", [(3, 4), (5,), ()])
def test_features_that_are_no_vector_an_image_are_refused_before_they_are_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(RelaError, match=r"the prior gave \(16.*\) for a block of images, not \(B, 4\)"):
        next(run_prior(Odd(*shape), IMAGES, 12, 16, torch.device("cpu"), "train"))
