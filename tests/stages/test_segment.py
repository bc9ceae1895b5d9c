"""Dense prediction: intersection over union against scikit-learn, and the heads on features that hold the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import nn

from rela_cli.errors import ConfigError
from rela_cli.evaluation import dense
from rela_cli.numerics.randomness import torch_seed
from rela_cli.pipeline.pipeline import Pipeline
from rela_cli.pipeline.run import Run
from rela_cli.stages import segment
from rela_cli.stages.segment import Segmenting
from tests.factories import config

SIZE = 16


def draw(root: Path, count: int, seed: int = 0) -> Path:
    """Images with two squares, each of the colour of its class, and their masks; the first row is to be ignored."""
    random = np.random.RandomState(seed)
    for number in range(count):
        image = random.randint(0, 60, (SIZE, SIZE, 3)).astype(np.uint8)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for label in (1, 2):
            top, left = random.randint(0, SIZE - 8, 2)
            image[top : top + 8, left : left + 8, label - 1] = 220
            mask[top : top + 8, left : left + 8] = label
        mask[0] = 255
        for folder, array in (("images", image), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw(folder / "train", 24)
    draw(folder / "val", 8, seed=1)
    return folder


def segmenting(shapes: Path, *words: str) -> Segmenting:
    data = ("dataset=segmentation", f"dataset.root={shapes}", f"dataset.image_size={SIZE}", "batch_size=2")
    fast = ("probe.segment_steps=120", "probe.segment_batch_size=8")
    prior = () if any(word.startswith("prior=") for word in words) else ("prior=random", "prior.width=8")
    run = Run(config(*data, *fast, *prior, *words, f"paths.outputs={shapes}/outputs"))
    Pipeline(run, "").make_images()
    return Segmenting(run.config, run.images, run.dataset)


@pytest.mark.parametrize("seed", range(3))
def test_iou_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.RandomState(seed)
    truth, guess = random.randint(0, 5, (2, 6, 9, 9))
    truth[random.rand(*truth.shape) < 0.2] = dense.IGNORED
    guess[random.rand(*truth.shape) < 0.3] = 4
    kept = truth != dense.IGNORED
    matrix = confusion_matrix(truth[kept], guess[kept], labels=range(5))
    counts = dense.confusion(torch.from_numpy(truth).byte(), torch.from_numpy(guess), 5)
    assert counts.tolist() == matrix.tolist()
    expected = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert dense.iou(counts).tolist() == expected.tolist()
    found = dense.scores(counts, list("abcde"), 0)
    assert list(found["iou"].values()) == jaccard_score(truth[kept], guess[kept], average=None).tolist()
    assert found["miou"] == pytest.approx(expected.mean(), rel=1e-15)
    assert found["miou_without_background"] == pytest.approx(expected[1:].mean(), rel=1e-15)
    assert found["pixel_accuracy"] == matrix.diagonal().sum() / matrix.sum() == (truth == guess)[kept].mean()


def test_a_class_that_is_nowhere_counts_in_no_mean() -> None:
    counts = torch.zeros(4, 4, dtype=torch.int64)
    counts[1, 1], counts[2, 1] = 3, 1
    found = dense.scores(counts, list("abcd"), 0)
    assert found["iou"] == {"a": None, "b": 0.75, "c": 0.0, "d": None}
    assert found["miou"] == found["miou_without_background"] == 0.375
    assert "miou_without_background" not in dense.scores(counts, list("abcd"), None)


def test_heads_find_what_is_in_the_map(shapes: Path) -> None:
    """Colour is all it takes; both heads are far above a guess, and the second call gives the same."""
    work = near(segmenting(shapes))
    found = {name: work.number(name) for name in dense.HEADS}
    for name, number in found.items():
        assert list(number["iou"]) == ["0", "1", "2"] and number["rate"] in dense.RATES, name
        assert 0.45 < number["miou"] < 1 and number["pixel_accuracy"] > 0.6, (name, number)
        assert number["flops"] > 0 and number["seconds"] > 0 and number["map"] == [8, 8, 8]
    again = near(segmenting(shapes)).number("linear")
    assert {**again, "seconds": 0} == {**found["linear"], "seconds": 0}


class Near(nn.Module):
    """A network whose map sees two pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        with torch_seed(0, "near"):
            self.conv = nn.Conv2d(3, 8, 2, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.avgpool(self.conv(images).relu()).flatten(1)  # type: ignore[no-any-return]


def near(work: Segmenting) -> Segmenting:
    work.network = Near().eval()
    return work


def test_maps_that_are_not_kept_give_the_same_but_for_half_precision(
    shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("probe.segment_lr=0.01", "probe.segment_steps=10")
    kept = near(segmenting(shapes, *words)).number("linear")
    monkeypatch.setattr(segment, "KEPT", 0)
    fresh = near(segmenting(shapes, *words)).number("linear")
    assert "made again for each batch" in " ".join(capsys.readouterr().err.split())
    assert fresh["miou"] == pytest.approx(kept["miou"], abs=0.03) and fresh["flops"] > kept["flops"]


def test_the_fcn_head_is_torchvisions() -> None:
    from torchvision.models.segmentation.fcn import FCNHead

    ours, theirs = dense.head("fcn", 32, 5), FCNHead(32, 5)
    theirs.load_state_dict(ours.state_dict())
    maps = torch.randn(2, 32, 4, 4)
    assert torch.equal(ours.eval()(maps), theirs.eval()(maps)) and str(ours) == str(theirs).replace(
        "FCNHead", "Sequential"
    )


def test_a_batch_without_a_pixel_that_counts_moves_nothing() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = dense.mean_loss(logits, torch.full((1, 2, 2), dense.IGNORED))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum().item() == 0  # type: ignore[union-attr]


def test_a_prior_without_a_map_is_named(shapes: Path) -> None:
    with pytest.raises(ConfigError, match="prior=patches is no network with a feature map"):
        segmenting(shapes, "prior=patches", "prior.patches=8")
