"""Every prior and every learner that conf/ names: built, measured against its card, trained for a step, probed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from rela_cli.config.compose import compose
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import CONF_DIR
from rela_cli.learners.build import build_backbone
from rela_cli.pipeline.pipeline import run
from rela_cli.pipeline.run import Run
from rela_cli.priors.base import Preprocess
from rela_cli.weights.locate import located
from tests.factories import NEEDS, config, pixels, stats_of

STATS = stats_of(pixels(4, 32))
LARGE = 100  # million parameters: above that a test builds on the meta device and trains nothing
LIKE_OTHERS = {  # built as well, and not run: the same code runs with fewer layers or larger patches
    "dinov2_vitb14": "dinov2_vits14",
    "clip_vitb16": "clip_vitb32",
    "clip_rn101": "clip_rn50",
    "clip_rn50x4": "clip_rn50",
    "resnet101": "resnet50",
    "resnet34": "resnet18",
}
UNTRAINED = {
    "embedded",
    "efficient",
    "ensemble",
    "none",
    "rela_run",
    "exported",
    "onnx",
    "random_learner",
}  # have no `prior.weights`, or tests of their own
TINY = ("batch_size=2", "epochs=1", "dataset.n=4", "dataset.n_test=4", "dataset.size=32", "dataset.classes=2")
CHEAP = ("probe.protocols=[knn]", "probe.baselines=false", "runtime.block_size=4")


def yamls(group: str) -> list[Path]:
    return sorted((CONF_DIR / group).glob("*.yaml"))


def card(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()).get("card") or {}


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def words_for(path: Path) -> list[str]:
    """What choosing a prior takes without a file at hand."""
    needs = [word for word in NEEDS.get(f"prior={path.stem}", []) if not word.startswith("prior.weights")]
    has_weights = "weights" in yaml.safe_load(path.read_text())
    return [f"prior={path.stem}", *needs, *(["prior.weights=random"] if has_weights else [])]


PRIORS = [p for p in yamls("prior") if p.stem not in UNTRAINED]


@pytest.mark.parametrize("path", PRIORS, ids=lambda p: p.stem)
def test_every_prior(path: Path, tmp_path: Path) -> None:
    facts, words = card(path), words_for(path)
    if facts.get("parameters", 0) > LARGE or path.stem in LIKE_OTHERS:
        with torch.device("meta"):
            made = instantiate(located(config(*words).prior), data=STATS)
        assert made.feature_dim == facts["features"]
        return  # its size is looked at by `test_every_cards_size`
    made = config(*words, *TINY, *CHEAP, f"paths.outputs={tmp_path}", "learner.width=4")
    outcome = run(made)
    result = Run(made).result
    assert outcome.status == "run"
    assert result is not None
    assert result["probe"]["knn"]["top1"] >= 0
    assert result["prior"] == path.stem + (" (random weights)" if "prior.weights=random" in words else "")
    assert result["labels_seen"] == []
    features = Run(made).features.manifest or {}
    assert features["feature_dim"] == facts.get("features", features["feature_dim"])


@pytest.mark.parametrize("path", [p for p in PRIORS if "parameters" in card(p)], ids=lambda p: p.stem)
def test_every_cards_size(path: Path) -> None:
    with torch.device("meta"):
        made = instantiate(located(config(*words_for(path)).prior), data=STATS)
    size = millions(made) or sum(b.numel() for b in made.buffers()) / 1e6  # the patches are no parameters
    assert size == pytest.approx(card(path)["parameters"], rel=0.01)


RUN = [path for path in yamls("learner") if path.stem not in LIKE_OTHERS]


@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
def test_every_learner(path: Path, tmp_path: Path) -> None:
    words = (f"learner={path.stem}", *TINY, *CHEAP, "prior=patches", "prior.patches=4", f"paths.outputs={tmp_path}")
    made = compose(["dataset=fake", "runtime.device=cpu", *words])
    assert run(made).status == "run"
    result = Run(made).result
    assert result is not None
    assert result["feature_dim"] == card(path)["features"]


@pytest.mark.parametrize("path", yamls("learner"), ids=lambda p: p.stem)
def test_every_learners_card(path: Path) -> None:
    made = build_backbone(compose([f"learner={path.stem}"]).learner, 0, 32)
    assert made.feature_dim == card(path)["features"]
    assert millions(made) == pytest.approx(card(path)["parameters"], rel=0.01)


OTHERS = [path for group in ("transport", "method", "optimizer", "switch") for path in yamls(group)]
OTHERS = [path for path in OTHERS if path.stem != "efficient"]  # tests of its own: commands/test_convert.py


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_other_part(path: Path, tmp_path: Path) -> None:
    """A run from end to end; half of it matching, so that the method has its turn."""
    half = [] if path.parent.name == "switch" else ["switch=fixed", "switch.at=0.5"]
    heads = {key: 8 for key in ("hidden_dim", "predictor_dim") if key in yaml.safe_load(path.read_text())}
    small = [f"{path.parent.name}.{key}={value}" for key, value in heads.items()]
    words = ["prior=patches", "prior.patches=4", "learner.width=4", "dataset.n=8", "batch_size=2"]
    made = config(*TINY, *CHEAP, *words, *half, f"{path.parent.name}={path.stem}", *small, f"paths.outputs={tmp_path}")
    assert run(made).status == "run"
    result = Run(made).result or {}
    assert result["steps"] == 4
    assert result["switch_step"] == 3 or path.parent.name == "switch"
    assert "knn" in result["probe"]


# ------------------------------------------------------------------------------------------------------- preprocessing


def photograph(size: int) -> Image.Image:
    return Image.fromarray(pixels(1, size)[0].permute(1, 2, 0).numpy())


def as_theirs(preprocess: Preprocess, transform: Any, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours on the uint8 tensor and the library's own on the Pillow image, both as 0..255."""
    image = photograph(size)
    ours = preprocess(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])[0]
    std, mean = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.std, preprocess.mean))
    return tuple((x * std + mean) * 255 for x in (ours, transform(image)))  # type: ignore[return-value]


def assert_same_pixels(preprocess: Preprocess, transform: Any) -> None:
    """One level apart at most, and that hardly anywhere: Pillow's weights are fixed-point numbers, so ties differ."""
    for size in (32, 48, 300):
        ours, theirs = as_theirs(preprocess, transform, size)
        assert ours.shape == theirs.shape
        difference = (ours - theirs).abs()
        assert difference.max() < 1.01
        assert (difference > 0.01).float().mean() < 1e-2


def chosen(name: str, *more: str) -> Preprocess:
    with torch.device("meta"):
        prior = instantiate(located(config(f"prior={name}", "prior.weights=random", *more).prior), data=STATS)
    return prior.preprocess


CLIPS = [p.stem for p in PRIORS if p.stem.startswith("clip_")]


@pytest.mark.parametrize("name", CLIPS)
def test_clip_is_fed_as_open_clip_feeds_it(name: str) -> None:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from open_clip.transformer import QuickGELU

    made = config(f"prior={name}").prior.options
    tag = open_clip.get_pretrained_cfg(made["model"], made["tag"])
    size = open_clip.get_model_config(made["model"])["vision_cfg"]["image_size"]
    settings = PreprocessCfg(size=size, **{k: tag[k] for k in ("mean", "std", "interpolation", "resize_mode")})
    assert_same_pixels(chosen(name), image_transform_v2(settings, is_train=False))
    with torch.device("meta"):
        tower = instantiate(located(config(f"prior={name}", "prior.weights=random").prior)).backbone
    is_transformer = "ViT" in made["model"]
    assert any(isinstance(module, QuickGELU) for module in tower.modules()) == is_transformer


@pytest.mark.parametrize("name", ["imagenet_resnet18", "imagenet_resnet50"])
def test_torchvision_weights_are_fed_as_torchvision_feeds_them(name: str) -> None:
    from torchvision import models

    made = config(f"prior={name}").prior.options
    weights = models.get_model_weights(made["model"])[made["tag"]]
    assert_same_pixels(chosen(name), weights.transforms())
    assert chosen("torchvision", f"prior.model={made['model']}", f"prior.tag={made['tag']}") == chosen(name)
    assert weights.url == config(f"prior={name}").prior.card.source
    assert weights.url.endswith(f"{config(f'prior={name}').prior.card.sha256}.pth")


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_models_are_fed_as_timm_feeds_them(model: str) -> None:
    import timm

    data = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    transform = timm.data.create_transform(**data, is_training=False)
    assert_same_pixels(chosen("timm", f"prior.model={model}"), transform)


@pytest.mark.parametrize(("size", "resized"), [(112, 128), (64, 73)])
def test_another_size_keeps_the_same_share_of_the_image(size: int, resized: int) -> None:
    from torchvision import transforms as t

    normalise = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    steps = [t.Resize(resized, t.InterpolationMode.BILINEAR), t.CenterCrop(size), t.ToTensor(), normalise]
    assert_same_pixels(chosen("imagenet_resnet18", f"prior.image_size={size}"), t.Compose(steps))


def test_dinov2_is_fed_as_its_authors_feed_it() -> None:
    from torchvision import transforms as t

    normalise = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    steps = [t.Resize(256, t.InterpolationMode.BICUBIC), t.CenterCrop(224), t.ToTensor(), normalise]
    assert_same_pixels(chosen("dinov2_vits14"), t.Compose(steps))


def test_clip_sources_are_open_clips_own() -> None:
    from rela_cli.priors.clip import OpenClip

    for name in CLIPS:
        prior = config(f"prior={name}").prior
        assert prior.card.source == OpenClip.sources(**prior.options)[0]
