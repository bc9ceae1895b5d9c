"""Transports against an independent float64 PCA (scikit-learn's full SVD), and where data are awkward."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA as Reference
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rela_cli.config.lengths import components_kept
from rela_cli.errors import RelaError
from rela_cli.numerics.gram import add_gram
from rela_cli.stages.train import read_targets
from rela_cli.stages.transport import judge, transport
from rela_cli.transports.base import Transport
from rela_cli.transports.identity import Identity
from rela_cli.transports.moments import Moments
from rela_cli.transports.pca import PCA, ZCA, Whitening
from rela_cli.transports.random_projection import RandomProjection
from rela_cli.transports.standardize import Standardize
from tests.factories import config


def features(n: int = 500, dim: int = 24, seed: int = 0) -> Tensor:
    """Correlated, not centred, spread over two orders of magnitude: (n, dim) float64."""
    random = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=random, dtype=torch.float64)).Q
    scales = torch.logspace(1, -1, dim, dtype=torch.float64)
    return torch.randn(n, dim, generator=random, dtype=torch.float64) * scales @ rotation + 3


def fitted(mapping: Transport, x: Tensor, block: int | None = None) -> Transport:
    mapping.fit(iter(x.split(block or len(x))))
    return mapping


def up_to_sign(a: Tensor, b: np.ndarray) -> float:
    """Largest difference after each column of `b` got the sign that fits best."""
    other = torch.from_numpy(b)
    return float((a - other * (a * other).sum(0).sign()).abs().max())


@pytest.mark.parametrize("whiten", [True, False])
def test_equal_to_scikit_learn_up_to_sign(whiten: bool) -> None:
    x, held_out = features(), features(50, seed=1)
    mapping = fitted(Whitening(2048) if whiten else PCA(2048), x)
    reference = Reference(whiten=whiten, svd_solver="full").fit(x.numpy())
    assert up_to_sign(mapping(x), reference.transform(x.numpy())) < 1e-9
    signs = (mapping(x) * torch.from_numpy(reference.transform(x.numpy()))).sum(0).sign()
    assert (mapping(held_out) - torch.from_numpy(reference.transform(held_out.numpy())) * signs).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_targets_of_stored_features_to_1e_5(dtype: torch.dtype) -> None:
    """Extracted features are fp16; the map is fitted on what is stored."""
    x = features().to(dtype)
    reference = Reference(whiten=True, svd_solver="full").fit_transform(x.double().numpy())
    assert up_to_sign(fitted(Whitening(2048), x, 64)(x), reference) < 1e-5


def test_whitened_means_zero_mean_unit_covariance_over_n_minus_1() -> None:
    x = features()
    y = fitted(Whitening(2048), x)(x)
    assert y.mean(0).abs().max() < 1e-10
    assert (torch.cov(y.T) - torch.eye(24, dtype=torch.float64)).abs().max() < 1e-9


@pytest.mark.parametrize("block", [1, 7, 77, 499])
def test_blocks_do_not_matter(block: int) -> None:
    x = features()
    whole, pieces = fitted(Whitening(2048), x), fitted(Whitening(2048), x, block)
    assert (whole(x) - pieces(x)).abs().max() < 1e-9


def test_a_large_offset_costs_nothing() -> None:
    """E[x^2] - E[x]^2 in float32 is noise or NaN here."""
    x = features() * 0.01
    shifted = x + 1e4
    reference = Reference(whiten=True, svd_solver="full").fit_transform(x.numpy())
    assert up_to_sign(fitted(Whitening(2048), shifted, 33)(shifted), reference) < 1e-5


@pytest.mark.parametrize("mapping", [Whitening(2048), PCA(2048)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_dead_components_are_exactly_zero_and_counted(mapping: Transport, offset: float) -> None:
    x = features(200, 8)
    awkward = torch.cat((x, x[:, :3] + x[:, 3:6], torch.full((200, 2), 5.0)), dim=1) + offset  # rank 8 of 13
    y = fitted(mapping, awkward)(awkward)
    assert y.isfinite().all()
    assert torch.equal(y[:, 8:], torch.zeros(200, 5, dtype=y.dtype))
    assert mapping.facts()["dead"] == 5
    reference = Reference(8, whiten=isinstance(mapping, Whitening), svd_solver="full").fit_transform(awkward.numpy())
    assert up_to_sign(y[:, :8], reference) < 1e-5


def test_fewer_samples_than_dimensions() -> None:
    x = features(10, 24)
    mapping = fitted(Whitening(2048), x, 3)
    y = mapping(x)
    assert y.isfinite().all()
    assert mapping.facts()["dead"] == 24 - 9
    assert (y[:, :9].var(0) - 1).abs().max() < 1e-9
    assert not y[:, 9:].any()


@pytest.mark.parametrize("n", [1, 5])
def test_nothing_but_constants(n: int) -> None:
    x = torch.full((n, 4), 7.0)
    mapping = fitted(Whitening(2048), x)
    assert torch.equal(mapping(x), torch.zeros(n, 4, dtype=torch.float64))
    assert mapping.facts()["dead"] == 4


def test_max_dim_keeps_the_first_components() -> None:
    x = features()
    few, all_of_them = fitted(Whitening(5), x), fitted(Whitening(2048), x)
    assert few(x).shape == (500, 5)
    assert (few(x) - all_of_them(x)[:, :5]).abs().max() < 1e-12
    assert few.facts()["dim"] == 5


def test_explained_variance() -> None:
    x = features()
    ratio = Reference(svd_solver="full").fit(x.numpy()).explained_variance_ratio_.cumsum()
    found = fitted(Whitening(20), x).facts()["explained_variance"]
    assert found == {"16": pytest.approx(ratio[15], abs=1e-6), "20": pytest.approx(ratio[19], abs=1e-6)}


def test_signs_are_fixed() -> None:
    mapping = fitted(Whitening(2048), features())
    axes = mapping.state()["axes"]
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_zca_is_numpys_symmetric_root() -> None:
    """The inverse square root of the covariance, by numpy in float64; nothing else whitens and is symmetric."""
    x, held_out = features(), features(50, seed=1)
    values, vectors = np.linalg.eigh(np.cov(x.numpy(), rowvar=False))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    mapping = fitted(ZCA(), x, 77)
    for z in (x, held_out):
        assert np.abs(mapping(z).numpy() - (z.numpy() - x.numpy().mean(0)) @ root).max() < 1e-9
    assert (mapping.ordered, mapping.facts()["dim"]) == (False, 24)
    flat = torch.cat((x, x[:, :1]), dim=1)  # one direction without variance
    assert fitted(ZCA(), flat)(flat).isfinite().all()


@pytest.mark.parametrize("block", [7, 500])
def test_standardize_is_scikit_learns(block: int) -> None:
    x = torch.cat((features(), torch.full((500, 1), 4.0, dtype=torch.float64)), dim=1)
    mapping = fitted(Standardize(), x, block)
    expected = (x[:, :24] - x[:, :24].mean(0)).numpy() / x[:, :24].std(0).numpy()
    reference = StandardScaler().fit_transform(x.numpy())[:, :24] * np.sqrt(499 / 500)  # over N there, N - 1 here
    assert np.abs(expected - reference).max() < 1e-9
    assert np.abs(mapping(x)[:, :24].numpy() - reference).max() < 1e-9
    assert not mapping(x)[:, 24].any()
    assert mapping.facts() == {"dim": 25, "dead": 1}


def test_random_projection_keeps_distances_and_is_reproducible() -> None:
    x = features(60, 24)
    mapping = fitted(RandomProjection(4000, 0), x, 13)
    y = mapping(x)
    assert torch.allclose(fitted(RandomProjection(4000, 0), x)(x), y, rtol=0, atol=1e-12), "blocks do not matter"
    assert not torch.allclose(fitted(RandomProjection(4000, 1), x)(x), y)
    assert torch.allclose(fitted(RandomProjection(10, 0), x)(x), y[:, :10]), "the first few are a projection too"
    ratio = torch.cdist(y, y)[0, 1:].square() * 24 / 4000 / torch.cdist(x, x)[0, 1:].square()
    assert (ratio - 1).abs().max() < 0.2
    assert y.mean(0).abs().max() < 1e-9


def test_identity() -> None:
    x = features(20, 6)
    mapping = fitted(Identity(), x)
    assert torch.equal(mapping(x), x)
    assert (mapping.ordered, mapping.facts()["dim"]) == (False, 6)


def spectrum(decades: float, n: int, dim: int = 96, drift: float = 0.0) -> Tensor:
    """fp16 features whose eigenvalues fall by so many decades; means move by `drift`, as those of sorted classes do."""
    random = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=random, dtype=torch.float64)).Q
    scales = torch.logspace(0, -decades / 2, dim, dtype=torch.float64)
    x = torch.randn(n, dim, generator=random, dtype=torch.float64) * scales
    x[:, :5] += drift * torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    x = x @ rotation
    return (x + 2).half() if decades < 9 else x.float()  # fp16 rounds what is weaker away


@pytest.mark.parametrize(
    ("decades", "drift", "taken"), [(2, 0.0, 0), (5, 0.0, 16), (6, 0.0, 32), (5, 3.0, 16), (9, 0.0, None)]
)
def test_float32_products_are_used_where_they_are_good_enough(decades: float, drift: float, taken: int | None) -> None:
    """Eigenvalues to a thousandth, targets to a cosine of 0.99999, against scikit-learn in float64."""
    dim = 300 if decades in (2, 9) else 96  # of 300, the covariance has a lower half that is not computed
    x = spectrum(decades, 8192, dim, drift)
    moments = Moments(keep=dim)
    for block in x.split(2048):
        moments.add(block)
    assert (moments.single is None) == (taken is None)
    assert moments.single is None or moments.single.top.shape[1] == taken
    reference = Reference(whiten=True, svd_solver="full").fit(x.double().numpy())
    values = torch.linalg.eigvalsh(moments.covariance).flip(0)
    assert (values / torch.from_numpy(reference.explained_variance_) - 1).abs().max() < 1e-3
    y, expected = fitted(Whitening(dim), x, 2048).rounded(x).double(), reference.transform(x.double().numpy())
    expected = torch.from_numpy(expected) * (y * torch.from_numpy(expected)).sum(0).sign()
    assert torch.cosine_similarity(y, expected, dim=1).min() > 0.99999


def test_only_what_is_kept_has_to_be_certain() -> None:
    x = spectrum(9, 1200, 300)
    few, many = Moments(keep=20), Moments(keep=300)
    few.add(x)
    many.add(x)
    assert few.single is not None
    assert many.single is None


def test_a_spectrum_of_few_rows_is_not_believed() -> None:
    moments = Moments(keep=8)
    moments.add(spectrum(2, 200))
    assert moments.single is None


@pytest.mark.parametrize("width", [1, 96, 128, 300])
def test_gram_is_the_upper_half_of_the_product(width: int) -> None:
    x = torch.randn(3000, width, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(width, width, dtype=torch.float64)
    add_gram(total, x)
    assert torch.allclose(total.triu(), (x.double().T @ x.double()).triu(), rtol=1e-5, atol=1e-2)


def test_weak_components_are_mapped_in_float64() -> None:
    """float32 alone errs by some 1e-4 of a deviation here."""
    x = spectrum(6, 4096)
    mapping = fitted(Whitening(96), x, 1024)
    assert (mapping.rounded(x).double() - mapping(x)).abs().max() < 5e-5


def test_a_mean_that_float32_cannot_hold_moves_no_target() -> None:
    x = (features() + 1000.3).float()
    assert fitted(Whitening(2048), x, 100).rounded(x).double().mean(0).abs().max() < 1e-5


def test_mapping_leaves_the_features_alone() -> None:
    x = features().float()
    before, mapping = x.clone(), fitted(Whitening(8), x, 200)
    mapping.rounded(x)
    assert torch.equal(x, before)


def eigen_targets(x: Tensor, power: float, center: bool = True) -> Tensor:
    """The definition, by LAPACK in numpy alone: (z - mean) v_i * eigenvalue_i^(-power / 2), strongest first."""
    z = x.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(z, rowvar=False))
    return torch.from_numpy((z - z.mean(0) * center) @ vectors[:, ::-1] * values[::-1] ** (-power / 2))


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("center", [True, False])
def test_a_power_against_a_float64_eigendecomposition(power: float, center: bool) -> None:
    x = features().float()
    mapping = Whitening(2048, power=power, dims="all", center=center)
    expected = eigen_targets(x, power, center).numpy()
    assert up_to_sign(fitted(mapping, x, 64)(x), expected) < 1e-5 * max(1, np.abs(expected).max())
    assert up_to_sign(mapping.rounded(x).double(), expected) < 1e-5 * max(1, np.abs(expected).max())


def test_the_ends_of_the_power_are_pca_and_whitening_to_the_bit() -> None:
    x = features(400, 12)
    assert torch.equal(fitted(Whitening(5, power=0.0), x)(x), fitted(PCA(5), x)(x))
    deviations = fitted(Whitening(2048, power=0.5), x)(x).std(0)
    assert torch.allclose(deviations, fitted(PCA(2048), x)(x).std(0).sqrt())


@pytest.mark.parametrize(("share", "deviation"), [(1e-9, 1.0), (1e-11, 0.0)])
def test_a_weak_component_counts_as_long_as_it_is_no_rounding_noise(share: float, deviation: float) -> None:
    """Its share of the largest eigenvalue is 10^-9, and below 10^-10 it is dead."""
    x = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 5] *= share**0.5
    whitening = Whitening(6)
    whitening.fit(iter([x]))
    assert whitening(x).std(0)[5].item() == pytest.approx(deviation, abs=1e-3)


def test_dead_components_stay_zero_at_any_power() -> None:
    x = features(200, 8)
    y = fitted(Whitening(2048, power=0.5), torch.cat((x, x[:, :3]), dim=1))(torch.cat((x, x[:, :3]), dim=1))
    assert y.isfinite().all()
    assert not y[:, 8:].any()


@pytest.mark.parametrize(("dims", "matched"), [("learner", 8), ("twice", 16), ("all", 24), ("5", 5), ("20", 20)])
def test_dims_say_what_a_learner_of_8_features_is_matched_to(
    dims: str, matched: int, stored: Path, tmp_path: Path
) -> None:
    for name in ("whitening", "pca"):
        folder = tmp_path / name
        folder.mkdir()
        facts = transport(config(f"transport={name}", f"transport.dims={dims}"), stored, folder)
        entry = SimpleNamespace(folder=folder, manifest=facts)
        targets = read_targets(entry, 8)  # type: ignore[arg-type]
        assert targets.shape == (500, matched)
        whole = load_file(folder / "train.safetensors")["targets"]
        assert len(whole.T) == components_kept(config(f"transport={name}", f"transport.dims={dims}").transport, 24)


def test_more_components_than_there_are_features_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert fitted(Whitening(2048, dims=30), features())(features()).shape == (500, 24)
    assert "transport.dims=30, but the prior has 24 features" in capsys.readouterr().err


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    save_file({"features": features().half()}, folder / "train.safetensors")
    save_file({"features": features(30, seed=1).half()}, folder / "test.safetensors")
    return folder


def test_the_stage_stores_targets_and_a_map_that_makes_them(stored: Path, tmp_path: Path) -> None:
    facts = transport(config(), stored, tmp_path)
    x, y = load_file(stored / "train.safetensors")["features"], load_file(tmp_path / "train.safetensors")["targets"]
    reference = Reference(whiten=True, svd_solver="full").fit(x.double().numpy())
    signs = (y.double() * torch.from_numpy(reference.transform(x.double().numpy()))).sum(0).sign()
    for split in ("train", "test"):
        x, y = load_file(stored / f"{split}.safetensors")["features"], load_file(tmp_path / f"{split}.safetensors")
        expected = torch.from_numpy(reference.transform(x.double().numpy())) * signs
        rounding = 2.0**-11 * expected.abs() + 2e-5  # fp16 has 11 bits; float32 products err by 1e-5 of a deviation
        assert ((y["targets"].double() - expected).abs() < rounding).all()
    mapped = load_file(tmp_path / "map.safetensors")
    again = (x.double() - mapped["mean"]) @ mapped["axes"] * mapped["scale"]
    assert torch.equal(again.half(), y["targets"])
    assert facts["ordered"] is True
    assert facts["dead"] == 0
    assert mapped["mean"].dtype == torch.float64


@pytest.mark.parametrize("name", ["identity", "pca"])
def test_targets_too_large_for_fp16_stay_finite(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    x = (features() * 1e5).float()
    save_file({"features": x}, folder / "train.safetensors")
    transport(config(f"transport={name}"), folder, tmp_path)
    assert load_file(tmp_path / "train.safetensors")["targets"].isfinite().all()


def test_a_train_split_alone_is_enough(stored: Path, tmp_path: Path) -> None:
    (stored / "test.safetensors").unlink()
    transport(config(), stored, tmp_path)
    assert not (tmp_path / "test.safetensors").exists()


def test_targets_that_hold_nothing_or_too_much_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    judge(1.0)
    assert capsys.readouterr().err == ""
    judge(0.0)
    assert "all targets are zero: the prior gives the same features for every image" in capsys.readouterr().err
    with pytest.raises(RelaError, match=r"the targets reach 1e\+30.*transport=whitening or transport=standardize"):
        judge(1e30)


def test_constant_and_huge_features_through_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("same", 0.0), ("huge", 1e30)):
        (tmp_path / name).mkdir()
        features = 1.0 + size * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        save_file({"features": features}, tmp_path / name / "train.safetensors")
    transport(config("transport=whitening"), tmp_path / "same", tmp_path)
    assert "all targets are zero" in capsys.readouterr().err
    with pytest.raises(RelaError, match="the targets reach"):
        transport(config("transport=identity"), tmp_path / "huge", tmp_path)
