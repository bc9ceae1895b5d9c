"""What the host reads of some steps is what each of them has made, by one copy."""

from __future__ import annotations

import torch

from rela_cli.machine.fake_gpu import Counted, fake_cuda
from rela_cli.training.readings import Readings, on_host


def test_all_steps_since_the_last_read() -> None:
    kept = Readings()
    for step in range(3):
        kept.losses.append(torch.tensor(float(step)))
        kept.bad.append(torch.tensor(float(step == 1)))
        kept.states.append(torch.arange(5, dtype=torch.float64) + step)
        kept.stops.append(torch.tensor(step / 2))
    read = kept.read(torch.tensor([0.0, 0, 0, 3, 7], dtype=torch.float64), torch.tensor([11, 2**40]))
    assert read.losses.tolist() == [0, 1, 2] and read.bad.tolist() == [0, 1, 0]
    assert read.averages is not None and read.averages.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert (read.leaves, read.linear, read.stops) == (True, (11, 2**40), True)
    again = kept.read()
    assert len(again.losses) == 0 and again.averages is None
    assert (again.leaves, again.linear, again.stops) == (False, (0, 0), False)


def test_tensors_of_any_type_come_from_a_gpu_by_one_copy() -> None:
    with fake_cuda(), Counted() as counted:
        made = [torch.zeros(3, device="cuda"), torch.zeros(2, 5, dtype=torch.float64, device="cuda")]
        made.append(torch.zeros(2, dtype=torch.int64, device="cuda"))
        found = on_host(made)
    assert [(f.shape, f.dtype, f.device.type) for f in found] == [(m.shape, m.dtype, "cpu") for m in made]
    assert len(counted.waits) == 1 and counted.waits[0].startswith("copy of (15,) to cpu")
