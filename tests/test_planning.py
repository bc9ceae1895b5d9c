"""`rela plan`: arithmetic that can be done by hand, and what cannot be meant."""

from __future__ import annotations

import re

import pytest

from rela_cli import planning
from rela_cli.errors import ConfigError
from rela_cli.plan import Rate
from rela_cli.planning import Sizes

SMALL = ("learner.width=4", "batch_size=64", "epochs=10", "budget=0.1", "runtime.threads=1")
GIVEN = ("samples=1e6", "size=8", "train_rate=1000", "prior_rate=2000", "image_bytes=30000")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert planning.main(list(words)) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line.split()[0]: line.split(None, 1)[1] for line in lines}


def test_a_million_images_that_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    plan = printed(capsys, *GIVEN, *SMALL, "runtime.devices=4")
    assert plan["images"] == "1,000,000 to train on, 100,000 of them an epoch, 40,000 to test"
    assert plan["steps"] == "15,620 of 64, so 999,680 images are seen"  # 100,000 // 64 steps an epoch
    assert plan["extract"] == "2.2 min"  # 1.04e6 / 2000 / 4 = 130 s
    assert plan["train"].startswith("4.2 min, ")  # 999,680 / 1000 / 4 = 250 s
    assert plan["read"] == "3 GB an epoch; all is 31.2 GB"
    assert plan["rates"] == "1,000 images/s trained on, 2,000 extracted on each of 4 processes"


def test_size_is_what_the_network_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Four times the pixels are four times the operations of a network of convolutions, and the bytes read."""
    small, large = (printed(capsys, *GIVEN[:1], f"size={s}", *GIVEN[2:4], *SMALL, "prior=none") for s in (16, 32))
    assert (small["read"], large["read"]) == ("76.8 MB an epoch; all is 799 MB", "307 MB an epoch; all is 3.19 GB")
    flops = [float(plan["train"].split(", ")[1].split()[0]) for plan in (small, large)]
    assert flops[1] / flops[0] == pytest.approx(4, rel=0.1)


def test_bytes_by_hand() -> None:
    rate = Rate(0.01, 1e6, 1000.0, 500)
    plan = Sizes(900, 100, 90, 1, 64, 2, 64, 32, 16, 10.0, rate, 5.0)
    assert plan.cache_bytes == 2 * 1000 * (32 + 16) + 16 * 1000
    assert plan.device_bytes == 32 * 1000 + 16 * 500
    assert plan.train_seconds == pytest.approx(64 * 0.01 / 2)


def test_the_plain_method_extracts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plan = printed(capsys, *GIVEN, *SMALL, "prior=none")
    assert plan["extract"] == "nothing: no prior"
    assert "extracted" not in plan["rates"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samples=many"], "samples=many must be a number above 0"),
        (["size=8"], "size= goes with samples="),
        (["-m", "budget=0.1,0.5"], "rela plan is of one run"),
        (["bugdet=0.1"], "did you mean budget"),
    ],
)
def test_what_cannot_be_meant(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        planning.main(words)
