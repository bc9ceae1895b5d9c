"""One vector an image from tokens and maps, channels in the order that a network wants, and hashes that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Part
from rela_cli.errors import ConfigError
from rela_cli.priors.base import Preprocess
from rela_cli.priors.pooling import vectors
from rela_cli.weights import locate
from tests.factories import config


def test_vectors_by_hand() -> None:
    tokens, found = torch.arange(24.0).reshape(2, 3, 4), torch.arange(48.0).reshape(2, 3, 2, 4)
    assert torch.equal(vectors(tokens, "cls"), tokens[:, 0])
    assert torch.equal(vectors(tokens, "mean")[1], torch.tensor([16.0, 17, 18, 19]))
    assert torch.equal(vectors(found, "mean")[0], torch.tensor([3.5, 11.5, 19.5]))
    assert torch.equal(vectors(tokens[:, 0], "none"), tokens[:, 0])
    for output, pool, words in (
        (tokens, "none", r"\(2, 3, 4\), tokens: say prior.pool=cls for the first one, prior.pool=mean for all"),
        (found, "none", r"a map: say prior.pool=mean$"),
        (found, "cls", r"a map: say prior.pool=mean \(a map has no class token\)"),
        (tokens[:, 0], "cls", "nothing that prior.pool=cls could pool; leave that out"),
    ):
        with pytest.raises(ConfigError, match=words):
            vectors(output, pool)


class Tokens(nn.Module):
    """(B, 3, H, W) -> (B, 5, 6), with the mean red as its first feature."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :1, None] + torch.arange(30.0).reshape(1, 5, 6)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    torch.jit.trace(Tokens(), torch.zeros(2, 3, 8, 8)).save(tmp_path / "tokens.pt")
    return tmp_path / "tokens.pt"


def exported(program: Path, *words: str) -> Part:
    plain = ("prior.mean=[0,0,0]", "prior.std=[0.00392157,0.00392157,0.00392157]", "prior.image_size=8")
    return config("prior=exported", f"prior.weights={program}", "prior.trust=true", *plain, *words).prior


def test_a_program_that_gives_tokens_says_what_to_type(program: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokens\.pt: it gives \(1, 5, 6\), tokens: say prior\.pool=cls"):
        instantiate(exported(program))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, 0], images[:, 2] = 200, 40
    for words, first in ((["prior.pool=cls"], 200.0), (["prior.pool=mean"], 212.0)):
        prior = instantiate(exported(program, *words))
        assert prior.feature_dim == 6
        assert prior(images)[0, 0].item() == pytest.approx(first, abs=0.1), "numbers from 0 to 255 by std = 1/255"
    blue_first = instantiate(exported(program, "prior.pool=cls", "prior.channels=bgr"))
    assert blue_first(images)[0, 0].item() == pytest.approx(40, abs=0.1)


def test_mean_and_std_stand_in_the_order_of_the_network() -> None:
    images = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    one = Preprocess(None, mean, std, channels="bgr")(images)
    assert torch.equal(one, Preprocess(None, mean, std)(images.flip(1)))


@pytest.mark.parametrize("prior", ["checkpoint", "exported", "timm", "torchvision"])
def test_keys_that_change_nothing_are_no_part_of_what_a_prior_is(prior: str, tmp_path: Path) -> None:
    """Runs from before `pool` and `channels` were there are found again."""
    part = config(
        f"prior={prior}", "prior.model=resnet18" if prior != "exported" else "seed=0", "prior.weights=random"
    ).prior
    assert part.options["pool"] == "none"
    assert not {"pool", "channels"} & locate.identity(part).keys()
    other = Part(part.name, part.target, {**part.options, "pool": "mean"}, part.card)
    assert locate.identity(other)["pool"] == "mean"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prior=patches prior.pool=mean", "prior.pool=mean must be a whole number for prior=patches"),
        ("prior=timm prior.model=x prior.pool=2", "prior.pool=2 must be one of cls, mean, none for prior=timm"),
        ("prior=timm prior.model=x prior.pool=first", "must be one of cls, mean, none"),
        ("prior=patches prior.pool=0", r"must be one of cls, mean, none \(of patches: 1, 2, ...\)"),
        ("prior=checkpoint prior.weights=x prior.channels=gbr", "must be one of rgb, bgr"),
    ],
)
def test_what_cannot_be_meant(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*words.split())
