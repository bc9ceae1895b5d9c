"""A program that was exported on a CPU, used on another device: its constants move with its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rela_cli.machine.fake_gpu import fake_cuda
from rela_cli.priors.exported import Program, open_program


class Counts(nn.Module):
    """A model that makes a tensor of its own, as position embeddings do; only with `weights` it has some."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.places = nn.Embedding(4, 3) if weights else None

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.arange(4, device=x.device)
        return x.flatten(1)[:, :3] + (numbers[:3] if self.places is None else self.places(numbers).mean(0))


def test_an_exported_program_makes_its_tensors_where_it_is_used(tmp_path: Path) -> None:
    given, path = torch.rand(2, 3, 4, 4), tmp_path / "net.pt2"
    batch = {0: torch.export.Dim("b", min=1, max=64)}
    torch.export.save(torch.export.export(Counts(True).eval(), (given,), dynamic_shapes=(batch,)), path)
    program = Program(open_program(path))
    before = program(given)
    with fake_cuda():
        assert nn.Sequential(program).to("cuda")(torch.zeros(5, 3, 4, 4, device="cuda")).device.type == "cuda"
    assert before.device.type == "cpu"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_script_too_after_it_has_run(tmp_path: Path) -> None:
    given, path = torch.rand(2, 3, 4, 4), tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(nn.Sequential(Counts(False)), given), path)
    program = Program(open_program(path))
    program(given)
    program.to("meta")
    assert program(given.to("meta")).device.type == "meta"
