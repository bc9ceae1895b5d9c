"""Priors: reproducible, right in their maths, and weights files taken whole or refused with a reason."""

from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from rela_cli.data.cache import ImageStats
from rela_cli.data.datasets import ImageFolder
from rela_cli.errors import ConfigError, MissingError
from rela_cli.learners.build import build_backbone
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.parts import build
from rela_cli.priors.base import NetworkPrior, Prior
from rela_cli.priors.checkpoint import Checkpoint
from rela_cli.priors.patches import EPSILON, Patches, contrast_normalised

from .factories import config, pixels, stats_of

IMAGES = pixels(64, 12)
STATS = stats_of(IMAGES)


def prior(*overrides: str, data: ImageStats = STATS, images: Tensor = IMAGES) -> Prior:
    made: Prior = build(config(*overrides).prior, data=data)
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
    backbone = build_backbone(made.learner, 0)
    state = prior("prior=random_learner").backbone.state_dict()
    assert state.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    x = (IMAGES.float() / 255 - STATS.mean.view(3, 1, 1)) / STATS.std.view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(features(prior("prior=random_learner")), backbone.eval()(x), atol=1e-5)


def test_random_is_a_network_of_its_own() -> None:
    learner = build_backbone(config().learner, 0)
    made = prior("prior=random", "prior.width=4")
    assert not torch.equal(made.backbone.conv1.weight, learner.conv1.weight)
    assert prior("prior=random").feature_dim == 512


def test_a_priors_own_size_mean_and_std_are_used() -> None:
    class Ends(torch.nn.Module):
        feature_dim = 3 * 36

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    found = NetworkPrior(Ends(), mean, std, image_size=6)(IMAGES).view(64, 3, 6, 6)
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as TF

    small = TF.resize(IMAGES.float() / 255, [6, 6], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    assert torch.allclose(found, TF.normalize(small, mean.tolist(), std.tolist()), atol=1e-5)


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


# ---------------------------------------------------------------------------------------------------------- checkpoints

FACTS: dict[str, Any] = {"image_size": 32, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "classes": 10}


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = cifar_resnet(20, 16)
    return {**network.state_dict(), "linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)}


def checkpoint(path: Path, model: str = "resnet20", **changes: Any) -> Checkpoint:
    return Checkpoint(model=model, weights=str(path), **{**FACTS, **changes}).eval()


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "data_parallel"])
def test_every_form_of_a_checkpoint_is_the_same_network(tmp_path: Path, form: str) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    expected = checkpoint(tmp_path / "a.safetensors").classify(IMAGES[:2])
    path = tmp_path / ("b.safetensors" if form == "safetensors" else "b.pth")
    if form == "safetensors":
        save_file(state(), path)
    elif form == "pth":
        torch.save(state(), path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state(), "best": 0.9}, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state().items()}}, path)
    assert torch.equal(checkpoint(path).classify(IMAGES[:2]), expected)


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    whole = state()
    partial = {k: v for k, v in whole.items() if not k.startswith("layer3.2.conv2")}
    for wrong, names in [
        (partial, ["Missing key", "layer3.2.conv2.weight"]),
        ({**whole, "extra.weight": torch.zeros(1)}, ["Unexpected key", "extra.weight"]),
        ({**whole, "linear.weight": torch.zeros(100, 64)}, ["size mismatch", "linear.weight"]),
    ]:
        save_file(wrong, path)
        with pytest.raises(ConfigError) as caught:
            checkpoint(path)
        assert all(name in str(caught.value) for name in [*names, "w.safetensors"])
    save_file(whole, path)
    with pytest.raises(ConfigError, match=r"layer1.3"):
        checkpoint(path, "resnet32")
    with pytest.raises(ConfigError, match="did you mean resnet20"):
        checkpoint(path, "rasnet20")
    torch.save({"epoch": 3, "model": whole}, tmp_path / "nested.pth")
    with pytest.raises((ConfigError, MissingError), match=r"nested.pth"):
        checkpoint(tmp_path / "nested.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(HTML, "a web page"), (POINTER, "a git-lfs pointer"), (b"", "cannot be read"), (b"\x80\x02abc", "cannot be read")],
)
def test_what_is_no_weights_file_is_said(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(MissingError, match=f"w.{suffix} .*{message}"):
        checkpoint(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_and_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    with pytest.raises(MissingError, match="does not exist"):
        checkpoint(path)
    with pytest.raises(MissingError, match="does not exist"):
        checkpoint(tmp_path)
    save_file(state(), path) if suffix == "safetensors" else torch.save(state(), path)
    whole = path.read_bytes()
    for length in (7, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(MissingError, match="cannot be read"):
            checkpoint(path)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_would_run_something_does_not(tmp_path: Path, suffix: str, plain: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"evil.{suffix}"
    if plain:
        path.write_bytes(pickle.dumps(Evil(mark)))
    else:
        torch.save({"state_dict": state(), "x": Evil(mark)}, path)
    with pytest.raises(MissingError, match="cannot be read"):
        checkpoint(path)
    assert not mark.exists()
    os.system(f"touch {mark}")
    assert mark.exists(), "the trap itself works"


def test_the_content_of_weights_decides_not_their_place(tmp_path: Path) -> None:
    from rela_cli.runs import Run

    def features_of(path: Path) -> tuple[str, str]:
        run = Run(config("prior=checkpoint", f"prior.weights={path}", "batch_size=16"))
        return run.features.hash, run.hash

    first, copy, other = tmp_path / "a.safetensors", tmp_path / "deep" / "b.safetensors", tmp_path / "c.safetensors"
    copy.parent.mkdir()
    save_file(state(), first)
    copy.write_bytes(first.read_bytes())
    flipped = bytearray(first.read_bytes())
    flipped[-1] ^= 1
    other.write_bytes(flipped)
    assert features_of(first) == features_of(copy)
    assert features_of(first)[0] != features_of(other)[0]
    assert features_of(first)[1] != features_of(other)[1]
    first.write_bytes(flipped)
    assert features_of(first) == features_of(other)


# ------------------------------------------------------------------------------------------------------ public weights


@pytest.fixture(scope="session")
def rela_data() -> Path:
    folder = os.environ.get("RELA_DATA")
    if not folder:
        pytest.skip("RELA_DATA is not set: the folder with data/cifar10-jpeg.tar.xz and weights/ is needed")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar10_test(rela_data: Path) -> tuple[Tensor, Tensor]:
    """The 10,000 test images, unpacked once into a cache of our own."""
    archive = rela_data / "data" / "cifar10-jpeg.tar.xz"
    root = Path.home() / ".cache" / "rela-tests" / f"cifar10-jpeg-{archive.stat().st_size}"
    if not (root / "complete").exists():
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and member.name.removeprefix("./").split("/")[-3:][0] == "test":
                    target = root.joinpath(*member.name.split("/")[-3:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
        (root / "complete").touch()
    dataset = ImageFolder(root=str(root / "test"), image_size=None, limit=None, test_limit=None, seed=0, flip=True)
    images, labels = dataset.load("train")
    assert images.shape == (10_000, 32, 32, 3)
    assert labels is not None
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


@pytest.mark.parametrize(
    ("model", "accuracy"), [("resnet20", 0.810), pytest.param("resnet56", 0.832, marks=pytest.mark.slow)]
)
def test_public_weights_load_strictly_and_score(
    rela_data: Path, cifar10_test: tuple[Tensor, Tensor], model: str, accuracy: float
) -> None:
    """The check that decoding, mean, std and the network are right: 81.0 % and 83.2 % with their own classifier."""
    path = rela_data / "weights" / f"{model}-cifar10.safetensors"
    made = checkpoint(path, model)
    with torch.inference_mode():
        right = [
            (made.classify(x).argmax(1) == y).sum().item()
            for x, y in zip(*(part.split(250) for part in cifar10_test), strict=True)
        ]
    assert sum(right) / 10_000 == pytest.approx(accuracy, abs=0.0015)


def test_both_files_have_exactly_our_keys(rela_data: Path) -> None:
    for model, depth in (("resnet20", 20), ("resnet56", 56)):
        keys = load_file(rela_data / "weights" / f"{model}-cifar10.safetensors").keys()
        ours = {key for key in cifar_resnet(depth, 16).state_dict() if not key.endswith("num_batches_tracked")}
        assert keys == ours | {"linear.weight", "linear.bias"}
