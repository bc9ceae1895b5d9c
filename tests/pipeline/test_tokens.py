"""extract.tokens: the cells of the learner's feature map are matched to what the prior's map has at the same place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from rela_cli.commands.convert.command import main as convert
from rela_cli.commands.plan import sizes
from rela_cli.config.compose import Composer
from rela_cli.config.lengths import lengths
from rela_cli.config.overrides import parse
from rela_cli.data.batches.cache import Split, read_split, read_stats
from rela_cli.data.batches.tokens import TargetsWithCells, TokenTargets, at_cells
from rela_cli.errors import ConfigError
from rela_cli.learners.maps import feature_map
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.footprint import of_run
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.tokens import map_of_prior, needs
from rela_cli.priors.cells import Cells
from rela_cli.priors.fitting import fitted_prior
from rela_cli.priors.patches import Patches
from rela_cli.stages.train import read_targets, read_tokens, read_views
from rela_cli.store.files import size_of
from rela_cli.training.goals import Goals
from rela_cli.training.trainer import Trainer
from rela_cli.transports.base import Transport, taken_up
from tests.factories import config, stats_of
from tests.pipeline.test_cached_views import ALIKE, FAKE, PRIORS, K, Made, alike, view

TOKENS = "extract.tokens=true"


class MadeTokens(Made):
    """The same with the prior's feature map."""

    def __init__(self, folder: Path, *words: str) -> None:
        super().__init__(folder, *words, "extract.tokens=true")
        self.entry = self.run.artifacts.token_targets
        self.cells = Cells(self.prior, self.config.extract.token_grid, self.data.size)
        self.cell_map: Transport = taken_up(self.config.transport, self.entry.folder / "map.safetensors", "", "")

    @torch.no_grad()
    def tokens(self, shown: Tensor) -> Tensor:
        """What the prior's map makes of some views (B, 3, S, S) uint8: (B, cells, k)."""
        rows = self.cells(shown).unflatten(1, (self.cells.count, -1))
        return self.cell_map(rows.flatten(0, 1)).float().unflatten(0, rows.shape[:2])

    def trainer(self) -> Trainer:
        targets = read_targets(self.run.targets, self.width)
        tokens = read_tokens(self.entry, 32, 16, 16)
        views = None
        if self.config.has_views:
            views = read_views(self.run.view_targets, self.width, self.config.seed)
        goals = Goals(targets, cached=views, tokens=tokens)
        return Trainer(self.config, self.run.lengths, self.split, goals, self.data)


@pytest.fixture(scope="module", params=["conv", "vit"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeTokens:
    return MadeTokens(tmp_path_factory.mktemp(request.param), *PRIORS[request.param])


def test_a_cells_target_is_what_the_prior_makes_of_that_view(made: MadeTokens) -> None:
    """Cropped and mirrored by another library; the test would fail if the mirror were forgotten."""
    boxes = load_file(made.run.view_targets.folder / "boxes.safetensors")["boxes"]
    stored = load_file(made.entry.folder / "train.safetensors")["targets"].unflatten(0, (48, K, made.cells.count))
    for number in range(K):
        pairs = [*zip(made.images, boxes[:, number].tolist(), strict=True)]
        right = made.tokens(torch.stack([view(image, box, bool(box[4])) for image, box in pairs]))
        wrong = made.tokens(torch.stack([view(image, box, not box[4]) for image, box in pairs]))
        own = stored[:, number, :, : made.width].flatten(0, 1)
        assert alike(own, right[..., : made.width].flatten(0, 1)).min() >= ALIKE
        assert alike(own, wrong[..., : made.width].flatten(0, 1)).mean() < 0.95


def test_the_learner_is_matched_to_the_map_of_the_view_that_it_is_shown(made: MadeTokens) -> None:
    """From the normalised views of a training step back to pixels, and through the prior."""
    trainer, rows = made.trainer(), torch.arange(3, 19)
    views = trainer.make_views(made.images[rows], rows, 1)
    targets = trainer.targets_of(views, rows, 1)
    assert isinstance(targets, TargetsWithCells)
    mean, std = made.data.mean.view(1, 3, 1, 1), made.data.std.view(1, 3, 1, 1)
    for shown, target in zip(views, targets.cells, strict=True):
        pixels = ((shown * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        found, wanted = target.maps.flatten(2).transpose(1, 2), made.tokens(pixels)[..., :32]
        assert found.shape == wanted.shape
        assert alike(found.flatten(0, 1), wanted.flatten(0, 1)).min() >= ALIKE
        assert alike(found.flatten(0, 1), made.tokens(pixels.flip(-1))[..., :32].flatten(0, 1)).mean() < 0.95
        assert not target.mirrored.any(), "the map is of the view as it is shown"
        edge = target.maps.shape[-1] * (1 - 1 / made.cells.share) / 2  # timm's ViT has seen the middle 32 of 35 px
        torch.testing.assert_close(target.boxes[:, :2], torch.full((16, 2), edge))
    trainer.start_phase(2)
    assert trainer.targets_of(views, rows, 1) is None


def test_the_map_is_fitted_to_all_cells(made: MadeTokens) -> None:
    """In numpy, in 64 bits: PCA whitening of every cell of every view; fp16 turns a target by a cosine of 1e-6."""
    features = load_file(made.run.artifacts.tokens.folder / "train.safetensors")["features"]
    rows = features.double().reshape(48 * K * made.cells.count, -1).numpy()
    centred = rows - rows.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / (len(rows) - 1))
    keep = values[::-1] > 1e-4 * values[-1]
    wanted = centred @ vectors[:, ::-1][:, keep] / np.sqrt(values[::-1][keep])
    found = load_file(made.entry.folder / "train.safetensors")["targets"].double().numpy()[:, keep]
    wanted *= np.sign((wanted * found).sum(0))
    cosines = (wanted * found).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 1 - 1e-6
    assert np.abs(found - wanted).max() < 0.01
    manifest = made.entry.manifest or {}
    assert manifest["flops"] == 4 * len(rows) * rows.shape[1] ** 2 + 9 * rows.shape[1] ** 3


def test_the_loss_is_of_the_representation_and_of_each_cell(made: MadeTokens) -> None:
    """Cell by cell, from the learner's own map; in eval mode, where one pass or two are the same."""
    trainer, rows = made.trainer(), torch.arange(8)
    trainer.trainee.eval()
    views = trainer.make_views(made.images[rows], rows, 0)
    targets = trainer.targets_of(views, rows, 0)
    assert isinstance(targets, TargetsWithCells) and trainer.trainee.tokens and trainer.trainee.matching
    losses = []
    for shown, target in zip(views, targets.cells, strict=True):
        maps = feature_map(trainer.trainee.method.backbone, shown)
        wanted, _ = at_cells(target, (maps.shape[2], maps.shape[3]))
        for i in range(8):
            for row in range(maps.shape[2]):
                for column in range(maps.shape[3]):
                    mapped = trainer.trainee.tokens.transfer(maps[i, :, row, column])
                    losses.append(1 - F.cosine_similarity(mapped, wanted[i, :, row, column], dim=0))
    found = [trainer.trainee.method.backbone(shown) for shown in views]
    pooled = trainer.trainee.matching(found, targets.pooled)
    expected = 0.5 * pooled + 0.5 * torch.stack(losses).mean()
    torch.testing.assert_close(trainer.loss_of(views, rows, 0), expected)
    torch.testing.assert_close(trainer.trainee(views, targets), expected)


def test_a_view_of_a_clean_image_is_matched_to_its_part_of_the_map() -> None:
    """Views that training draws itself, and a map of the colours of each part: these move with what they are of."""
    images = smooth(64, 32)
    asked = config("batch_size=16", "matching=geometric", "extract.tokens=true", "matching.view.crop_scale=[0.3,1.0]")
    maps = F.avg_pool2d(images.float(), 2).flatten(2).transpose(1, 2)[:, None]
    data, targets = stats_of(images), torch.randn(64, 3)
    goals = Goals(targets, tokens=TokenTargets(maps, side=32, size=32))
    loop = Trainer(asked, lengths(asked, 64), Split(images, None), goals, data)
    rows = torch.arange(64)
    views = loop.make_views(images, rows, 3)
    found = loop.targets_of(views, rows, 3)
    assert isinstance(found, TargetsWithCells)
    mean, std = data.mean.view(1, 3, 1, 1), data.std.view(1, 3, 1, 1)
    for shown, target in zip(views, found.cells, strict=True):
        seen = centred(F.avg_pool2d((shown * std + mean) * 255, 8))
        assert alike(seen, centred(at_cells(target, (4, 4))[0])).min() >= ALIKE
        forgotten = target._replace(mirrored=torch.zeros_like(target.mirrored))
        assert alike(seen, centred(at_cells(forgotten, (4, 4))[0])).mean() < 0.9


def smooth(count: int, size: int) -> Tensor:
    """Colour ramps that bend, (count, 3, size, size) uint8."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 3, 3, 3, generator=random)
    ramps = F.interpolate(corners, (size, size), mode="bicubic", align_corners=True)
    return (ramps.clamp(0, 1) * 255).round().to(torch.uint8)


def centred(maps: Tensor) -> Tensor:
    """(B, 3, h, w) without the mean colour of each image: (B, 3 * h * w)."""
    return (maps - maps.mean((2, 3), keepdim=True)).flatten(1)


def test_patches_keep_a_map_of_seven_cells_a_side(tmp_path: Path) -> None:
    """Its responses are of 11 x 11 places, in the middle of 16 x 16 px; the map is kept in fp16."""
    words = (*FAKE, "prior=patches", "prior.patches=8", "prior.pool=1", TOKENS)
    asked = config(*words, f"paths.outputs={tmp_path}")
    pipeline.run(asked, until="extract")
    entry = Run(asked).artifacts.tokens
    manifest = entry.manifest or {}
    assert (manifest["cells"], manifest["channels"], manifest["covered"]) == (49, 16, 11 / 16)
    run = Run(asked)
    split = read_split(run.images, "train", run.dataset)
    assert split is not None and isinstance(split.images, Tensor)
    prior, _ = fitted_prior(asked, split, read_stats(run.images))
    with torch.no_grad():
        maps = prior.cells(split.images, 49)
    assert tuple(maps.shape) == (48, 16, 11, 11)
    torch.testing.assert_close(maps.mean((2, 3)), prior(split.images))
    stored = load_file(entry.folder / "train.safetensors")["features"].unflatten(1, (49, 16))
    wanted = F.interpolate(maps, (7, 7), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    assert alike(stored.flatten(0, 1), wanted.flatten(0, 1)).min() > 1 - 1e-6


def test_a_whole_run_and_what_it_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It shares features and targets with the run without, its cost has the second look, and a plan knows its bytes."""
    words = (*FAKE, *PRIORS["conv"], "budget=0.5", "switch=fixed", "switch.at=0.5", f"paths.outputs={tmp_path}")
    without, asked = Run(config(*words)), config(*words, "extract.tokens=true")
    run = Run(asked)
    assert run.features == without.features and run.targets == without.targets and run.hash != without.hash
    assert "-random-tokens-" in run.name and run.inputs.keys() - without.inputs.keys() == {"tokens", "token_targets"}
    plan = sizes(run, of_run(run), {"train_rate": 100.0, "prior_rate": 10.0})
    before = sizes(without, of_run(without), {"train_rate": 100.0, "prior_rate": 10.0})
    assert plan.extract_seconds - before.extract_seconds == pytest.approx(48 / 10)
    asked_for = needs(run, map_of_prior(run, 16), "train")
    assert plan.cache_bytes - before.cache_bytes == sum(asked_for.values()) == 2 * 48 * 4 * (32 + 32)
    pipeline.run(asked)
    for kind, size in asked_for.items():
        assert size_of(getattr(Run(asked).artifacts, kind).folder) - size_of_map(run, kind) == pytest.approx(
            size, abs=1500
        )
    result = Run(asked).result or {}
    assert result["settings"]["extract"] == {"tokens": True}
    manifests = [(getattr(Run(asked).artifacts, kind).manifest or {})["flops"] for kind in ("features", "tokens")]
    assert manifests[0] == manifests[1] and result["flops"]["extract"] == sum(manifests)
    assert pipeline.run(asked).status == "found"
    assert "maps of 7" in capsys.readouterr().out


def size_of_map(run: Run, kind: str) -> int:
    path = getattr(run.artifacts, kind).folder / "map.safetensors"
    return path.stat().st_size if path.exists() else 0


def test_an_extraction_goes_on_behind_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle and called again, the features are the same bits."""
    words = (*FAKE, *PRIORS["conv"], "extract.tokens=true")
    whole, broken = (config(*words, f"paths.outputs={tmp_path / name}") for name in ("whole", "broken"))
    pipeline.run(whole, until="transport")
    seen, forward = [], Cells.forward

    def failing(self: Cells, images: Tensor) -> Tensor:
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("unplugged")
        return forward(self, images)

    monkeypatch.setattr(Cells, "forward", failing)
    with pytest.raises(RuntimeError, match="unplugged"):
        pipeline.run(broken, until="transport")
    pipeline.run(broken, until="transport")
    assert len(seen) == 2 + 2 + 1  # the second and third of three blocks, and one whose FLOPs are counted
    for kind in ("tokens", "token_targets"):
        one, other = (getattr(Run(c).artifacts, kind).folder / "train.safetensors" for c in (whole, broken))
        assert one.read_bytes() == other.read_bytes()


def test_without_tokens_all_is_what_it_was() -> None:
    plain = Run(config(*FAKE))
    assert (
        Run(config(*FAKE, "extract.tokens=false", "extract.token_grid=9", "matching.token_weight=1.0")).hash
        == plain.hash
    )
    assert "token" not in str(plain.settings) and plain.inputs.keys() == {"images", "features", "targets"}
    composer = Composer(parse(["extract.token_grid=9", "matching.token_weight=0.2"]))
    assert not composer.check().has_tokens
    assert [note.split(" has no effect: ")[1] for note in composer.notes] == ["it goes with extract.tokens=true"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prior=onnx", "prior.weights=x.onnx"), "needs the feature map of prior=onnx, and a program gives what"),
        (("prior=exported", "prior.weights=x.pt2"), "needs the feature map of prior=exported, and a program"),
        (("prior=ensemble", "prior.members=[patches,random]"), "the maps of its members may have other numbers"),
        (("dataset=efficient", "prior=efficient", "transport=efficient"), "an efficient dataset brings one target"),
        (("matching.targets=live",), "matching.targets=live keeps nothing: say matching.targets=cached, or leave"),
        (("runtime.compile=default",), "runtime.compile=default hides: say runtime.compile=off, or leave"),
        (("matching.token_weight=0",), "must be above 0 and at most 1"),
        (("extract.token_grid=1",), "must be at least 2"),
    ],
)
def test_what_cannot_be_meant(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(TOKENS, *words)


def test_networks_without_a_map_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior, a learner; and the maps of an efficient dataset, which there are not."""
    asked = config(*FAKE, TOKENS, f"paths.outputs={tmp_path}")
    with monkeypatch.context() as patched:
        patched.delattr(Patches, "cells")
        for until in ("probe", "extract"):
            with pytest.raises(ConfigError, match="prior=patches: Patches gives one vector an image and no map"):
                pipeline.run(asked, until=until)
    monkeypatch.setattr("rela_cli.learners.maps.BEFORE", ())
    monkeypatch.setattr("rela_cli.learners.maps.AFTER", ())
    with pytest.raises(ConfigError, match="does not go with learner=resnet18: ResNet has no feature map"):
        pipeline.run(asked)
    assert not (tmp_path / "cache/features").exists() and not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="an efficient dataset holds one target an image, and no feature maps"):
        convert([TOKENS, "dataset=fake", "--to", str(tmp_path / "to")])
