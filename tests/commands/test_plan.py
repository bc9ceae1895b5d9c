"""`rela plan`: arithmetic that can be done by hand, and what cannot be meant."""

from __future__ import annotations

import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rela_cli.commands import plan
from rela_cli.commands.plan import PlanSizes
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline import estimate
from rela_cli.pipeline.estimate import CostRates, Speed, StepTiming

SMALL = ("learner.width=4", "batch_size=64", "epochs=10", "budget=0.1", "runtime.threads=1")
GIVEN = ("samples=1e6", "size=8", "train_rate=1000", "prior_rate=2000", "image_bytes=30000")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert plan.main(list(words)) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line.split()[0]: line.split(None, 1)[1] for line in lines if not line.startswith("    ")}


def test_a_million_images_that_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    plan = printed(capsys, *GIVEN, *SMALL, "runtime.devices=4")
    assert plan["images"] == "1,000,000 to train on, 100,000 of them an epoch, 40,000 to test"
    assert plan["steps"] == "15,620 of 64, so 999,680 images are seen"  # 100,000 // 64 steps an epoch
    assert plan["extract"] == "2.2 min"  # 1.04e6 / 2000 / 4 = 130 s
    assert plan["train"].startswith("4.2 min, ")  # 999,680 / 1000 / 4 = 250 s
    assert plan["read"] == "3 GB an epoch; all is 31.2 GB"
    assert plan["range"] == "times are as sure as the rates that are given"
    assert plan["rates"] == "1,000 images/s trained on, 2,000 extracted on each of 4 processes"


def test_a_fine_tuning_has_its_time_and_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Four trainings of each of two networks, or one of each where the rate is given."""
    words = (*GIVEN, *SMALL, "probe.protocols=[finetune]", "probe.finetune_steps=500", "probe.label_share=1e-4")
    assert plan.main([*words]) == 0
    out = capsys.readouterr().out
    assert "finetune  6.7 min, " in out  # 8 * 500 * 100 / 1000 s
    assert "8 trainings of 500 steps of 100, half of them from scratch" in out
    row = r"^    finetune  ([\d.]+) (.B): .*activations and gradients of 100 images"
    ((memory, unit),) = re.findall(row, out, re.MULTILINE)
    assert float(memory) * {"MB": 1, "GB": 1000}[unit] > 100
    given = printed(capsys, *words, "probe.finetune_lr=0.01", "probe.label_share=1.0")
    assert given["finetune"].startswith("2.1 min, ") and "2 trainings of 500 steps of 128" in given["finetune"]


def test_size_is_what_the_network_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Four times the pixels are four times the operations of a network of convolutions, and the bytes read."""
    small, large = (printed(capsys, *GIVEN[:1], f"size={s}", *GIVEN[2:4], *SMALL, "prior=none") for s in (16, 32))
    assert (small["read"], large["read"]) == ("76.8 MB an epoch; all is 799 MB", "307 MB an epoch; all is 3.19 GB")
    flops = [float(plan["train"].split(", ")[1].split()[0]) for plan in (small, large)]
    assert flops[1] / flops[0] == pytest.approx(4, rel=0.1)


def test_sizes_by_hand() -> None:
    rate = CostRates(0.01, 0.008, 1e6, 500)
    plan = PlanSizes(900, 100, 90, 1, 64, 2, 64, 32, 16, 10.0, rate, Speed(0.2, 3.0), "adaptive")
    assert plan.cache_bytes == 2 * 1000 * (32 + 16) + 16 * 1000
    assert plan.train_seconds == pytest.approx(64 * 0.01 / 2)
    assert replace(plan, switch="never").train_seconds == pytest.approx(64 * 0.008 / 2)
    assert plan.extract_seconds == pytest.approx(3 + 1000 * 0.2 / 2)


def test_the_range_of_a_time_by_hand() -> None:
    """From the quicker phase and the quickest block of the prior to the slower phase and the slowest block."""
    rate, prior = CostRates(0.01, 0.008, 1e6, 500, (0.5, 3.0)), Speed(0.2, 3.0, (0.9, 2.0))
    plan = PlanSizes(900, 100, 90, 1, 64, 2, 64, 32, 16, 10.0, rate, prior, "adaptive")
    extract = 3 + 1000 * 0.2 / 2
    assert plan.range == pytest.approx((0.5 * 64 * 0.008 / 2 + 0.9 * extract, 3 * 64 * 0.01 / 2 + 2 * extract))
    alone = replace(plan, prior=None, switch="")  # the plain method: nothing is matched
    assert alone.range == pytest.approx((0.5 * 64 * 0.01 / 2, 3 * 64 * 0.01 / 2))


def test_other_work_widens_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that take 1, 2 and 3 s of their own, and twice as long by the clock on the wall."""
    own, steps = [0.0], iter((9.0, 1.0, 2.0, 3.0))
    monkeypatch.setattr(estimate.time, "process_time", lambda: own[0])
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: 2 * own[0])
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 11.0)

    def work() -> None:
        own[0] += next(steps)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert estimate.timed(work, torch.device("cpu")) == StepTiming(2.0, 1.0, 6.0)
    assert estimate.relative_range([StepTiming(2.0, 1.0, 6.0), StepTiming(1.0, 0.25, 2.0)]) == (0.25, 3.0)


def test_nothing_is_tried_out_where_both_rates_are_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet-18 at 224 px with batch 512: its step is counted, and nothing of its memory is taken."""
    for name in ("trial", "prior_speed"):
        monkeypatch.setattr(f"rela_cli.commands.plan.{name}", lambda *_: pytest.fail("a trial ran"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = ("samples=1281167", "size=224", "train_rate=1500", "prior_rate=5000")
    words = ("experiment=imagenet1k_resnet50", "learner=resnet18", *given)
    plan = printed(capsys, *words, "prior=random")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB; the step takes 20 GB
    assert re.match(r"\d{2,3}\.\d GB at the most, to train", plan["memory"]), plan["memory"]
    assert plan["train"].startswith("23.7 h, ")  # 1281024 * 100 / 1500 s


def test_what_has_not_been_read_has_its_own_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The digits have 8 px whether they are in the cache or not: 64 times 3 bytes, and a plan of seconds."""
    plan = printed(capsys, *GIVEN[2:4], *SMALL[:4], f"paths.outputs={tmp_path}")
    assert plan["read"] == "27.5 kB an epoch; all is 345 kB"  # 143 and 1797 of 192 bytes


@pytest.mark.parametrize("words", [["dataset=imagenet1k"], ["dataset=image_folder", "dataset.image_size=32"]])
def test_data_that_are_not_here_need_not_be(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere.*to plan without the data say --samples N --size S"):
        plan.main([*words, f"dataset.root={tmp_path}/nowhere"])


def test_the_plain_method_extracts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plan = printed(capsys, *GIVEN, *SMALL, "prior=none")
    assert plan["extract"] == "nothing: no prior"
    assert "extracted" not in plan["rates"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samples=many"], "--samples=many must be a number above 0"),
        (["size=8"], "--size goes with --samples"),
        (["-m", "budget=0.1,0.5"], "rela plan is of one run"),
        (["bugdet=0.1"], "did you mean budget"),
    ],
)
def test_what_cannot_be_meant(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan.main(words)
