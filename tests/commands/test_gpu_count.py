"""`rela doctor --gpu`: a table of what a step launches, without a GPU and without data."""

from __future__ import annotations

import pytest

from rela_cli.commands import doctor


def test_a_table_of_both_phases(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset=fake", "learner=cifar_resnet", "learner.depth=8", "method=simsiam", "batch_size=8"]
    assert doctor.main(["--gpu", *words]) == 0
    text = capsys.readouterr().out
    assert "cifar_resnet, simsiam, adamw: batch 8, 32 px" in text
    rows = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in text.splitlines()[2:10]}
    assert rows["all"] == [sum(of_phase) for of_phase in zip(*(rows[part] for part in list(rows)[:-1]), strict=True)]
    assert min(rows["backward"]) > 20
    assert "the host waits for nothing" in text
