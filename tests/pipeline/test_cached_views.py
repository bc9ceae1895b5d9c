"""extract.views: the target of a light view is what the prior makes of that very view, and the learner is shown it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from rela_cli.commands.plan import sizes
from rela_cli.config.compose import Composer
from rela_cli.config.overrides import parse
from rela_cli.config.schema import Config
from rela_cli.data.batches.boxes import cut
from rela_cli.data.batches.cache import read_split, read_stats
from rela_cli.errors import ConfigError
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.footprint import of_run
from rela_cli.pipeline.preflight import needs_of_views
from rela_cli.pipeline.run import Run
from rela_cli.priors.fitting import fitted_prior
from rela_cli.stages.train import read_targets, read_views
from rela_cli.store.files import size_of
from rela_cli.training.goals import Goals
from rela_cli.training.trainer import Trainer
from rela_cli.transports.base import Transport, taken_up
from tests.factories import config

K = 3
FAKE = ("dataset=fake", "dataset.n=48", "dataset.n_test=20", "dataset.size=16", "runtime.block_size=20",
        "runtime.eval_every_epochs=0", "matching=geometric", "batch_size=16", "epochs=2", "probe.protocols=[knn]",
        "probe.knn_k=5")  # fmt: skip
PRIORS = {
    "conv": ("prior=random", "prior.width=4"),
    "vit": ("prior=timm", "prior.model=vit_tiny_patch16_224", "prior.weights=random", "prior.image_size=32"),
}
ALIKE = 0.999  # cosine of fp16 targets with float32 ones; a mirror that is forgotten gives less


class Made:
    """A run with K views up to its targets, and the prior behind it."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.config: Config = config(*FAKE, *words, f"extract.views={K}", f"paths.outputs={folder}")
        pipeline.run(self.config, until="transport")
        self.run = Run(self.config)
        split = read_split(self.run.images, "train", self.run.dataset)
        assert split is not None and isinstance(split.images, Tensor)
        self.split, self.images, self.data = split, split.images, read_stats(self.run.images)
        self.prior, _ = fitted_prior(self.config, split, self.data)
        path = self.run.targets.folder / "map.safetensors"
        self.map: Transport = taken_up(self.config.transport, path, "", "")

    @torch.no_grad()
    def targets(self, shown: Tensor) -> Tensor:
        """What the prior makes of some views (B, 3, S, S) uint8."""
        return self.map(self.prior(shown)).float()

    @property
    def width(self) -> int:
        return min(32, int((self.run.targets.manifest or {})["dim"]))

    def trainer(self) -> Trainer:
        targets = read_targets(self.run.targets, self.width)
        views = read_views(self.run.view_targets, self.width, self.config.seed)
        return Trainer(self.config, self.run.lengths, self.split, Goals(targets, cached=views), self.data)


@pytest.fixture(scope="module", params=["conv", "vit"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param), *PRIORS[request.param])


def alike(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.float(), other.float(), dim=1)


def view(image: Tensor, box: list[int], is_mirrored: bool) -> Tensor:
    """Crop and mirror by torchvision, on 8 bits."""
    top, left, height, width, _ = box
    cropped = tv.resized_crop(image.float(), top, left, height, width, [16, 16], antialias=True).round().clamp(0, 255)
    return (cropped.flip(-1) if is_mirrored else cropped).to(torch.uint8)


def test_a_target_is_what_the_prior_makes_of_that_view(made: Made) -> None:
    """Cropped and mirrored by another library; the test would fail if the mirror were forgotten."""
    boxes = load_file(made.run.view_targets.folder / "boxes.safetensors")["boxes"]
    stored = load_file(made.run.view_targets.folder / "train.safetensors")["targets"].unflatten(1, (K, -1))
    for number in range(K):
        box = boxes[:, number]
        both = [torch.stack([view(image, b, bool(b[4]) is is_right) for image, b in
                             zip(made.images, box.tolist(), strict=True)]) for is_right in (True, False)]  # fmt: skip
        right, wrong = (made.targets(shown)[:, : made.width] for shown in both)
        assert alike(stored[:, number, : made.width], right).min() >= ALIKE
        assert alike(stored[:, number, : made.width], wrong).mean() < 0.99


def test_the_learner_is_shown_the_view_that_its_target_is_of(made: Made) -> None:
    """From the normalised views of a training step back to pixels, and through the prior."""
    trainer, rows = made.trainer(), torch.arange(3, 19)
    views = trainer.make_views(made.images[rows], rows, 1)
    targets = trainer.targets_of(views, rows, 1)
    assert isinstance(targets, list) and len(targets) == len(views) == 2
    mean, std = made.data.mean.view(1, 3, 1, 1), made.data.std.view(1, 3, 1, 1)
    for shown, target in zip(views, targets, strict=True):
        pixels = ((shown * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        assert alike(made.targets(pixels)[:, : made.width], target).min() >= ALIKE
        assert alike(made.targets(pixels.flip(-1))[:, : made.width], target).mean() < 0.99
    trainer.position.phase = 2  # as a trial of its steps does it
    tried = trainer.make_views(made.images[rows], rows, 1)
    trainer.start_phase(2)
    assert trainer.targets_of(views, rows, 1) is None
    assert torch.equal(trainer.make_views(made.images[rows], rows, 1)[0], tried[0])


def test_a_whole_run_and_what_it_is_called(tmp_path: Path) -> None:
    """It shares features and targets of the clean views with the run of one view, and its cost has all passes."""
    words = (*FAKE, *PRIORS["conv"], "budget=0.5", "switch=fixed", "switch.at=0.5")
    one, many = (config(*words, *more, f"paths.outputs={tmp_path}") for more in ((), (f"extract.views={K}",)))
    single, run = Run(one), Run(many)
    for asked in (one, many):
        pipeline.run(asked)
    assert run.features == single.features and run.targets == single.targets and run.hash != single.hash
    assert f"-random-{K}views-" in run.name and "views" not in single.name
    results = [Run(asked).result or {} for asked in (one, many)]
    assert results[1]["flops"]["extract"] == (1 + K) * results[0]["flops"]["extract"]
    assert results[1]["seconds"]["extract"] > results[0]["seconds"]["extract"]
    assert results[1]["settings"]["extract"] == {"views": K} and "extract" not in results[0]["settings"]
    assert pipeline.run(many).status == "found"


def test_one_view_is_what_there_was_before() -> None:
    asked = (*FAKE, *PRIORS["conv"])
    assert Run(config(*asked, "extract.views=1")).hash == Run(config(*asked)).hash
    assert Run(config(*asked)).inputs.keys() == {"images", "features", "targets"}


def test_an_extraction_goes_on_behind_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle and called again, the features are the same bits."""
    words = (*FAKE, *PRIORS["conv"], f"extract.views={K}")
    whole = config(*words, f"paths.outputs={tmp_path / 'whole'}")
    pipeline.run(whole, until="extract")
    broken = config(*words, f"paths.outputs={tmp_path / 'broken'}")
    seen = []

    def failing(*given: Tensor) -> Tensor:
        seen.append(1)
        if len(seen) == 5:
            raise RuntimeError("unplugged")
        return cut(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("rela_cli.stages.extract.cut", failing)
    with pytest.raises(RuntimeError, match="unplugged"):
        pipeline.run(broken, until="extract")
    pipeline.run(broken, until="extract")
    assert len(seen) == 5 + 2 * K  # the second and third of three blocks
    one, other = (load_file(Run(c).views.folder / "train.safetensors")["features"] for c in (whole, broken))
    assert torch.equal(one, other)


def test_a_plan_says_disk_and_time_before(tmp_path: Path) -> None:
    words = (*FAKE, *PRIORS["conv"], f"paths.outputs={tmp_path}")
    runs = [Run(config(*words, f"extract.views={count}")) for count in (1, K)]
    of = of_run(runs[0])
    one, many = (sizes(run, of, {"train_rate": 100.0, "prior_rate": 10.0}) for run in runs)
    assert many.extract_seconds - one.extract_seconds == pytest.approx(K * 48 / 10)
    width, kept = many.width, many.targets
    assert many.cache_bytes - one.cache_bytes == K * 48 * (2 * (width + kept) + 2 * 10)
    asked = needs_of_views(runs[1].artifacts, runs[1], "transport", width)
    pipeline.run(runs[1].given, until="transport")
    for kind in ("views", "view_targets"):
        assert size_of(getattr(runs[1], kind).folder) == pytest.approx(asked[kind], abs=1500)  # manifest, headers


def test_what_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match=r"matching\.targets=live makes them anew in every step: say one of them"):
        config("extract.views=2", "matching.targets=live")
    with pytest.raises(ConfigError, match=r"extract\.views=0 must be at least 1"):
        config("extract.views=0")


def test_without_a_prior_it_has_no_effect() -> None:
    composer = Composer(parse(["prior=none", "extract.views=2"]))
    assert not composer.check().has_views
    assert list(composer.notes) == ["extract.views=2 has no effect: prior=none is the method by itself"]
