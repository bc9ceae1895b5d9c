"""Transports on a GPU, without one: nothing meets on two devices, a block costs no read, the answers agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.machine import device as machine
from rela_cli.stages import transport as stage
from rela_cli.store.row_file import RowFile
from rela_cli.transports.base import Transport
from rela_cli.transports.identity import Identity
from rela_cli.transports.moments import Moments
from rela_cli.transports.pca import PCA, ZCA, Whitening
from rela_cli.transports.random_projection import RandomProjection
from rela_cli.transports.standardize import Standardize
from tests.fake_cuda import GPU, counted, fake_cuda, gpu_code_on_cpu

WIDTH = 24
TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "pca": lambda: PCA(16),
    "whitening": lambda: Whitening(16),
    "zca": ZCA,
    "standardize": Standardize,
    "random_projection": lambda: RandomProjection(16, 0),
    "identity": Identity,
}
READS = {"pca": 1, "whitening": 1, "zca": 1, "random_projection": 1}  # of a fit: how many components are light; axes


@pytest.mark.parametrize("name", TRANSPORTS)
def test_no_transport_waits_for_a_block(name: str) -> None:
    with fake_cuda():
        for blocks in (2, 6):
            mapping, features = TRANSPORTS[name](), torch.zeros(blocks * 512, WIDTH, dtype=torch.float16, device=GPU)
            fit = counted(lambda mapping=mapping, features=features: mapping.fit(features.split(512)))
            assert len(fit.waits) == READS.get(name, 0)
            targets = [None]
            used = counted(lambda: targets.__setitem__(0, mapping.rounded(features)))
            assert used.waits == [] and targets[0].is_cuda and targets[0].dtype == torch.float32
            assert all(value.is_cuda for key, value in mapping.state().items() if key != "dim")
            assert len(counted(mapping.facts).waits) <= 3


def features(n: int = 3000) -> Tensor:
    """Some whose spectrum falls by a factor of 10,000, as those of networks do."""
    random = torch.Generator().manual_seed(3)
    mixing = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=random))[0]
    return (torch.randn(n, WIDTH, generator=random) * torch.logspace(1, -1, WIDTH)) @ mixing + 1


@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_way_for_a_gpu_gives_the_cpus_targets(name: str) -> None:
    """What is kept has 11 bits: components agree to a thousandth of their deviation."""
    x, ours, theirs = features().half(), TRANSPORTS[name](), TRANSPORTS[name]()
    ours.fit(x.split(512))
    with gpu_code_on_cpu():
        theirs.fit(x.split(512))
        found = theirs.rounded(x)
    expected = ours.rounded(x)
    assert ((found - expected).abs().max(0).values <= 1e-3 * expected.std(0).clamp(min=1e-6)).all()


def test_moments_of_a_gpu_are_float64s() -> None:
    x, moments = features().half(), Moments(keep=16)
    with gpu_code_on_cpu():
        moments.add_all(x.split(512))
    assert moments.single is None
    assert torch.allclose(moments.covariance, x.double().T.cov(), rtol=1e-12, atol=1e-12)


def test_targets_from_a_file_by_way_of_the_device(tmp_path: Path) -> None:
    """The stage's own loop, with a device that is asked for; only the last row of the map's place is the CPU's."""
    save_file({"features": features().half()}, tmp_path / "features.safetensors")
    mapping, found = Whitening(16), []
    mapping.fit(features().half().split(512))
    for number in range(2):
        path = tmp_path / f"{number}.safetensors"
        stage.write_targets(mapping, RowFile(tmp_path / "features.safetensors", "features"), path)
        found.append(load_file(path)["targets"])
    assert torch.equal(*found) and found[0].dtype == torch.float16


def test_what_has_no_room_is_done_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**9, 10**9))
    assert machine.with_room(GPU, 10**8, "this").type == "cuda"
    assert machine.with_room(GPU, 3 * 10**9, "whitening").type == "cpu"
    assert "whitening would take 3.0 GB, and the GPU has 1.0 GB free: it is done on the CPU" in capsys.readouterr().err
    assert machine.with_room(torch.device("cpu"), 10**15, "all").type == "cpu"


def test_a_transport_from_outside_stays_on_the_cpu() -> None:
    from tests.factories import config

    assert stage.device_of_map(Transport(), config().runtime, 8).type == "cpu"


def test_a_tensor_that_is_left_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Moments.exact
    monkeypatch.setattr(Moments, "exact", lambda self, block: tuple(part.cpu() for part in exact(self, block)))
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        counted(lambda: Moments().add_all(torch.zeros(512, WIDTH, device=GPU).split(128)))
