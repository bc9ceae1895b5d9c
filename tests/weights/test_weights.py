"""Weights: files in the forms that people have them, loaded whole or refused with a reason, without a network."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rela_cli.config.parts import instantiate
from rela_cli.config.schema import Card, Part
from rela_cli.data.folders import ImageFolder
from rela_cli.errors import ConfigError, MissingError
from rela_cli.learners.cifar_resnet import cifar_resnet
from rela_cli.learners.resnet import resnet18
from rela_cli.priors.base import Prior
from rela_cli.priors.checkpoint import Checkpoint
from rela_cli.weights.kinds import kind_of
from rela_cli.weights.locate import locate, located
from tests.conftest import Rela
from tests.factories import config, pixels, stats_of

IMAGES = pixels(4, 32)
FACTS: dict[str, Any] = {
    "image_size": 32,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "stem": "cifar",
}
State = dict[str, Tensor]


def prior(*overrides: str) -> Prior:
    """As stage extract builds it."""
    made: Prior = instantiate(located(config(*overrides).prior), data=stats_of(IMAGES), allow=())
    return made.eval()


def state() -> State:
    torch.manual_seed(0)
    network = cifar_resnet(20, 16)
    return {**network.state_dict(), "linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)}


def checkpoint(path: Path, model: str = "resnet20", **changes: Any) -> Checkpoint:
    return Checkpoint(model=model, weights=str(path), **{**FACTS, **changes}).eval()


@torch.no_grad()
def features(made: nn.Module, images: Tensor = IMAGES) -> Tensor:
    return made(images)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------------ wrappers


def under(prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state().items()}


def other_network() -> State:
    return {key: torch.full_like(value, 3) for key, value in state().items()}


FORMS: dict[str, Callable[[], Any]] = {
    "plain": state,
    "state_dict": lambda: {"epoch": 3, "state_dict": state(), "best": 0.9},
    "model": lambda: {"model": state(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}},
    "DataParallel": lambda: {"state_dict": nn.DataParallel(whole_network()).state_dict()},
    "compiled": lambda: torch.compile(whole_network()).state_dict(),
    "DDP of compiled": lambda: under("module._orig_mod."),
    "DINO": lambda: {"student": {f"module.{k}": v for k, v in other_network().items()}, "teacher": under("backbone.")},
    "backbone with heads": lambda: {**under("backbone."), "projector.0.weight": torch.zeros(3, 3)},
    "without num_batches_tracked": lambda: {k: v for k, v in state().items() if "num_batches" not in k},
    "half precision": lambda: {k: v.half() if v.is_floating_point() else v for k, v in state().items()},
}


def whole_network() -> nn.Module:
    """With its classifier, as it was trained."""
    network = cifar_resnet(20, 16)
    network.linear = nn.Linear(64, 10)
    network.load_state_dict(state())
    return network


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_is_the_same_network(tmp_path: Path, form: str) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    torch.save(FORMS[form](), tmp_path / "b.pth")
    expected, found = (features(checkpoint(tmp_path / name)) for name in ("a.safetensors", "b.pth"))
    assert torch.allclose(found, expected, atol=2e-2 if form == "half precision" else 1e-7)


def test_two_networks_in_one_file_are_a_question(tmp_path: Path) -> None:
    path = tmp_path / "solo.ckpt"
    momentum = {f"momentum_backbone.{k}": v for k, v in other_network().items()}
    torch.save({"state_dict": {**under("backbone."), **momentum}}, path)
    with pytest.raises(ConfigError, match=r"2 networks; say prior.prefix= one of state_dict.backbone., state_dict.mom"):
        checkpoint(path)
    save_file(state(), tmp_path / "a.safetensors")
    expected = features(checkpoint(tmp_path / "a.safetensors"))
    assert torch.equal(features(checkpoint(path, prefix="state_dict.backbone.")), expected)
    with pytest.raises(ConfigError, match=r"prior.prefix=encoder.: no key of .* starts with it"):
        checkpoint(path, prefix="encoder.")


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    whole = state()
    partial = {k: v for k, v in whole.items() if not k.startswith("layer3.2.conv2")}
    for wrong, names in [
        (partial, ["missing: layer3.2.conv2.weight"]),
        ({**whole, "extra.weight": torch.zeros(1)}, ["unexpected: extra.weight", "prior.ignore=[extra]"]),
        ({**whole, "bn1.weight": torch.zeros(9)}, ["of another shape: bn1.weight 9 for 16"]),
    ]:
        save_file(wrong, path)
        with pytest.raises(ConfigError) as caught:
            checkpoint(path)
        assert all(name in str(caught.value) for name in [*names, "w.safetensors"])
        assert len(str(caught.value).splitlines()) <= 6
    checkpoint_with_extra = {**whole, "extra.weight": torch.zeros(1)}
    save_file(checkpoint_with_extra, path)
    assert features(checkpoint(path, ignore=["extra"])).isfinite().all()
    save_file(whole, path)
    with pytest.raises(ConfigError, match=r"layer1.3"):
        checkpoint(path, "resnet32")
    with pytest.raises(ConfigError, match="did you mean resnet20"):
        checkpoint(path, "rasnet20")


@pytest.mark.parametrize(("stem", "asked", "way_out"), [("cifar", "imagenet", "3x3"), ("imagenet", "cifar", "7x7")])
def test_a_stem_that_does_not_fit_says_which_would(tmp_path: Path, stem: str, asked: str, way_out: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file(resnet18(stem, 8).state_dict(), path)
    with pytest.raises(ConfigError, match=rf"conv1.weight(.|\n)*a {way_out} one in the file: choose prior.stem="):
        checkpoint(path, "resnet18", stem=asked)
    assert features(checkpoint(path, "resnet18", stem=stem)).shape == (4, 64), "the width is read off the file"


# -------------------------------------------------------------------------------------- libraries' own models and files


def filled(network: nn.Module) -> nn.Module:
    """A network whose batch norms have seen something, so that a buffer left out would show."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_timm_safetensors(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    theirs = filled(timm.create_model("resnet10t", num_classes=7))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = prior("prior=timm", "prior.model=resnet10t", f"prior.weights={tmp_path}/model.safetensors")
    x = ours.preprocess(IMAGES)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert torch.allclose(features(ours), expected, atol=1e-5)
    assert ours.feature_dim == 512
    again = prior("prior=checkpoint", "prior.model=timm:resnet10t", f"prior.weights={tmp_path}/model.safetensors")
    assert again.feature_dim == 512


def test_dinov2_in_its_authors_form_at_another_size(tmp_path: Path) -> None:
    """518 px and a mask token in the file, 224 px here: timm's own translation does both, and its loader agrees."""
    import timm

    torch.manual_seed(3)
    name, path = "vit_small_patch14_dinov2.lvd142m", tmp_path / "dinov2_vits14_pretrain.pth"
    published = timm.create_model(name).state_dict() | {"mask_token": torch.zeros(1, 384)}
    assert published["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    torch.save(published, path)
    overlay = {"file": str(path)}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=224)
    ours = prior("prior=dinov2_vits14", f"prior.weights={path}")
    with torch.no_grad():
        assert torch.allclose(features(ours, IMAGES[:1]), theirs.eval()(ours.preprocess(IMAGES[:1])), atol=1e-5)


def test_images_that_patches_do_not_fill_are_cut_as_timm_cuts_them_and_it_is_said(tmp_path: Path, capsys) -> None:
    import timm

    torch.manual_seed(3)
    theirs = filled(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=40))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    words = ("prior=timm", "prior.model=vit_tiny_patch16_224", f"prior.weights={tmp_path}/vit.pth")
    ours = prior(*words, "prior.image_size=40")
    told = capsys.readouterr().err
    assert "so it sees 32 x 32 px of an image and not the last 8 at the right and at the bottom" in told
    assert "prior.image_size=32 or 48" in told
    with torch.no_grad():
        assert torch.allclose(features(ours), theirs.eval()(ours.preprocess(IMAGES)), atol=1e-5)
    prior(*words, "prior.image_size=48")
    assert not capsys.readouterr().err


def test_torchvision_pth(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(3)
    theirs = filled(models.mobilenet_v3_small())
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    ours = prior("prior=torchvision", "prior.model=mobilenet_v3_small", f"prior.weights={tmp_path}/mobilenet.pth")
    x = ours.preprocess(IMAGES)
    with torch.no_grad():
        expected = theirs.classifier[:-1](theirs.avgpool(theirs.features(x)).flatten(1))
    assert torch.allclose(features(ours), expected, atol=1e-5)


def test_imagenet_resnet18_from_torchvisions_own_file(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(3)
    theirs = filled(models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "r.pth")
    ours = prior("prior=imagenet_resnet18", f"prior.weights={tmp_path}/r.pth")
    theirs.fc = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(features(ours), theirs(ours.preprocess(IMAGES)), atol=1e-5)


def test_the_public_cifar_resnet18_is_timms_with_another_stem(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(3)
    theirs = timm.create_model("resnet18", num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    filled(theirs)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = prior("prior=cifar10_resnet18", f"prior.weights={tmp_path}/pytorch_model.bin")
    theirs.reset_classifier(0)
    with torch.no_grad():
        assert torch.allclose(features(ours), theirs(ours.preprocess(IMAGES)), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- CLIP

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of open_clip's own kind, small enough for a test."""
    import open_clip

    path = tmp_path_factory.mktemp("clip") / "ViT-tiny-test.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)
    return path.stem


def openai_file(folder: Path, model: str, script: bool) -> tuple[nn.Module, Path]:
    """What OpenAI published: half precision, QuickGELU, and three numbers among the tensors; or all that scripted."""
    import open_clip

    torch.manual_seed(5)
    theirs = open_clip.create_model(model, force_quick_gelu=True).eval()
    for value in theirs.visual.parameters():
        value.data = value.data.mul(3).half().float()  # large enough for the activation to matter
    path = folder / "ViT-tiny.pt"
    if script:
        inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long))
        torch.jit.save(torch.jit.trace(theirs, inputs, check_trace=False), path)
    else:
        numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(8)}
        torch.save({**{k: v.half() for k, v in theirs.state_dict().items()}, **numbers}, path)
    return theirs, path


def clip_prior(model: str, path: Path, *more: str) -> Prior:
    # `tag` is that of any OpenAI model: it gives preprocessing, and the activation is given by hand below
    overrides = ["prior=clip_vitb32", f"prior.model={model}", "prior.tag=''", f"prior.weights={path}"]
    return prior(*overrides, "prior.image_size=null", *more)


@pytest.mark.parametrize("script", [False, True], ids=["state dict", "TorchScript"])
def test_openai_clip(tmp_path: Path, tiny_clip: str, script: bool) -> None:
    theirs, path = openai_file(tmp_path, tiny_clip, script)
    trust = ["prior.trust=true"] if script else []
    ours = clip_prior(tiny_clip, path, *trust)
    with torch.no_grad():
        expected = theirs.encode_image(ours.preprocess(IMAGES))
    assert ours.feature_dim == 24
    assert torch.allclose(features(ours), expected, atol=1e-5)
    wrong = features(clip_prior(tiny_clip, path, "prior.quick_gelu=false", *trust))
    assert (wrong - expected).abs().max() > 1e-3, "the trap: these weights load under the other activation too"


def test_openai_archives_need_a_word(tmp_path: Path, tiny_clip: str) -> None:
    path = openai_file(tmp_path, tiny_clip, script=True)[1]
    with pytest.raises(ConfigError, match=r"TorchScript archive.*prior.trust=true"):
        clip_prior(tiny_clip, path)


def test_positions_of_another_size_are_resampled_by_open_clip(tmp_path: Path, tiny_clip: str) -> None:
    import open_clip

    path, whole = openai_file(tmp_path, tiny_clip, script=False)[1], tmp_path / "float.pt"
    stored = {k: v.float() for k, v in torch.load(path).items() if v.ndim}  # theirs cannot resample halves on a CPU
    torch.save(stored | {"logit_scale": torch.ones([])}, whole)
    theirs = open_clip.create_model(tiny_clip, str(whole), force_quick_gelu=True, force_image_size=48).eval()
    ours = clip_prior(tiny_clip, path, "prior.image_size=48")
    with torch.no_grad():
        assert torch.allclose(features(ours), theirs.encode_image(ours.preprocess(IMAGES)), atol=1e-5)


@pytest.mark.parametrize("choice", ["clip_vitb32", "clip_rn50"])
def test_unknown_clips(choice: str) -> None:
    with pytest.raises(ConfigError, match=r"no weights opanai of .*did you mean openai"):
        prior(f"prior={choice}", "prior.tag=opanai", "prior.weights=random")
    with pytest.raises(ConfigError, match=r"open_clip knows no model ViT-B-33, did you mean ViT-B-32"):
        prior(f"prior={choice}", "prior.model=ViT-B-33", "prior.weights=random")


# ------------------------------------------------------------------------------------------------------------ programs


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def program(path: Path, kind: str, network: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(2)
    network = filled(network or Small())
    if kind == "script":
        torch.jit.save(torch.jit.script(network), path)
    else:
        batch = torch.export.Dim("batch")
        exported = torch.export.export(network, (torch.zeros(3, 3, 32, 32),), dynamic_shapes=({0: batch},))
        torch.export.save(exported, path)
    return network


@pytest.mark.parametrize(("kind", "name"), [("script", "m.pt"), ("export", "m.pt2")])
def test_exported_programs(tmp_path: Path, kind: str, name: str) -> None:
    theirs, path = program(tmp_path / name, kind), tmp_path / name
    assert kind_of(path) == kind
    choice = ("prior=exported", f"prior.weights={path}", "prior.image_size=32")
    with pytest.raises(ConfigError, match=r"can run code that is in it.*prior.trust=true"):
        locate(config(*choice).prior)  # before anything opens it
    with pytest.raises(ConfigError, match=r"prior.trust=true"):
        instantiate(replace(config(*choice).prior, options={**config(*choice).prior.options, "weights": str(path)}))
    ours = prior(*choice, "prior.trust=true")
    with torch.no_grad():
        assert torch.allclose(features(ours), theirs(ours.preprocess(IMAGES)), atol=1e-5)
    assert ours.feature_dim == 5
    with pytest.raises(ConfigError, match=r"1 image of 16 px|not \(1, width\)"):
        program(path, kind, nn.Sequential(nn.Conv2d(3, 4, 17), nn.Flatten(2)))
        prior(*choice[:2], "prior.image_size=16", "prior.trust=true")


def test_weights_without_a_program_are_no_program(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds weights without a program; say prior=checkpoint"):
        prior("prior=exported", f"prior.weights={tmp_path}/w.pth", "prior.trust=true")


# ------------------------------------------------------------------------------------------------------- what a file is

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML, "is a web page"),
        (POINTER, "is a git-lfs pointer"),
        (b"", "is empty"),
        (b"\x80\x02abc", "cannot be read"),
        (b"nothing of the kind", "is not a file of weights"),
    ],
)
def test_what_is_no_weights_file_is_said(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(MissingError, match=f"w.{suffix} .*{message}|w.{suffix} {message}"):
        prior("prior=checkpoint", f"prior.weights={path}")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_missing_and_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    for absent, words in ((path, "does not exist"), (tmp_path, r"is a folder without model\.safetensors")):
        with pytest.raises(MissingError, match=words):
            prior("prior=checkpoint", f"prior.weights={absent}")
    save_file(state(), path) if suffix == "safetensors" else torch.save(state(), path)
    whole = path.read_bytes()
    for length in (7, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(MissingError, match=r"truncated or damaged|not a file of weights"):
            prior("prior=checkpoint", f"prior.weights={path}")


def test_a_file_of_tensors_with_bytes_behind_its_end_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state(), path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(MissingError, match=f"truncated or damaged: {size + 4} bytes instead of {size}"):
        kind_of(path)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_would_run_something_does_not(tmp_path: Path, suffix: str, plain: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"evil.{suffix}"
    if plain:
        path.write_bytes(pickle.dumps(Evil(mark)))
    else:
        torch.save({"state_dict": state(), "x": Evil(mark)}, path)
    for trust in ("false", "true"):
        with pytest.raises(MissingError, match="cannot be read"):
            prior("prior=checkpoint", f"prior.weights={path}", f"prior.trust={trust}")
    assert not mark.exists()
    os.system(f"touch {mark}")
    assert mark.exists(), "the trap itself works"


def test_the_content_of_weights_decides_not_their_place(tmp_path: Path) -> None:
    from rela_cli.pipeline.run import Run

    def hashes_of(path: Path) -> tuple[str, str]:
        run = Run(config("prior=checkpoint", f"prior.weights={path}", "batch_size=16"))
        return run.features.hash, run.hash

    first, copy, other = tmp_path / "a.safetensors", tmp_path / "deep" / "b.safetensors", tmp_path / "c.safetensors"
    copy.parent.mkdir()
    save_file(state(), first)
    copy.write_bytes(first.read_bytes())
    flipped = bytearray(first.read_bytes())
    flipped[-1] ^= 1
    other.write_bytes(flipped)
    assert hashes_of(first) == hashes_of(copy)
    assert hashes_of(first)[0] != hashes_of(other)[0]
    assert hashes_of(first)[1] != hashes_of(other)[1]
    first.write_bytes(flipped)
    assert hashes_of(first) == hashes_of(other)


# ---------------------------------------------------------------------------------------------- caches and the network


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a hub that refuses at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def test_missing_weights_name_the_file_the_cache_and_the_ways_out(offline: Path) -> None:
    with pytest.raises(MissingError) as caught:
        prior("prior=clip_vitb16")
    words = str(caught.value)
    for expected in (
        "prior=clip_vitb16 needs open_clip_model.safetensors (about 599 MB) of timm/vit_base_patch16_clip_224.openai",
        str(offline / "hub" / "models--timm--vit_base_patch16_clip_224.openai"),
        "127.0.0.1:9 cannot be reached",
        "Connection refused",
        "rela fetch prior=clip_vitb16",
        "prior.weights=/path",
        "HF_ENDPOINT=",
    ):
        assert expected in words


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["prior=timm", "prior.model=resnet10t.c3_in1k"], "model.safetensors of timm/resnet10t.c3_in1k"),
        (["prior=open_clip", "prior.model=ViT-B-32", "prior.tag=laion2b_s34b_b79k"], "laion/CLIP-ViT-B-32-laion2B"),
    ],
)
def test_the_libraries_know_where_their_weights_are(offline: Path, words: list[str], file: str) -> None:
    with pytest.raises(MissingError, match=file):
        prior(*words)


def test_a_name_without_weights_is_never_a_random_network(offline: Path) -> None:
    import timm

    name = next(m for m in timm.list_models("resnet*") if not timm.get_pretrained_cfg(m).has_weights)
    with pytest.raises(ConfigError, match=rf"nobody publishes weights for prior=timm prior.model={name}.*random"):
        prior("prior=timm", f"prior.model={name}")


def test_a_name_look_up_that_hangs_does_not_hold_us(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(30))
    started = time.monotonic()
    with pytest.raises(MissingError, match=r"no answer in 3 s"):
        prior("prior=clip_vitb16")
    assert 2 < time.monotonic() - started < 8


def test_weights_in_the_hub_cache_are_found(offline: Path) -> None:
    """The layout that huggingface_hub itself keeps."""
    repository = offline / "hub" / "models--edadaltocg--resnet18_cifar10"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    torch.save(resnet18("cifar", 64).state_dict(), snapshot / "pytorch_model.bin")
    assert prior("prior=cifar10_resnet18").feature_dim == 512


def test_weights_in_torchs_cache_are_found_and_checked(offline: Path) -> None:
    cache = offline / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(resnet18("imagenet", 64).state_dict(), cache / "resnet18-f37072fd.pth")
    with pytest.raises(MissingError, match=r"is not the file that prior=imagenet_resnet18 names.*f37072fd"):
        prior("prior=imagenet_resnet18")


def test_a_download_lands_in_the_cache(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real web server on this machine in the hub's place."""
    import http.server
    import threading

    served = offline / "web"
    served.mkdir()
    torch.save(resnet18("imagenet", 4).state_dict(), served / "tiny.pth")
    handler = lambda *a: http.server.SimpleHTTPRequestHandler(*a, directory=str(served))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = f"http://127.0.0.1:{server.server_port}/tiny.pth"
    words = ["prior=checkpoint", "prior.model=resnet18", "prior.stem=imagenet", "prior.weights=pretrained"]
    part = replace(config(*words).prior, card=Card(source=source))
    assert instantiate(located(part)).feature_dim == 32
    server.shutdown()
    assert (offline / "torch" / "hub" / "checkpoints" / "tiny.pth").is_file()
    assert instantiate(located(part)).feature_dim == 32, "the second time without the server"


def test_train_without_network_fails_at_once_and_before_torch(rela: Rela, tmp_path: Path) -> None:
    from tests.conftest import NO_TORCH

    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hub")}
    for command in ("train", "fetch"):
        done = rela(command, "prior=clip_vitb16", stub=NO_TORCH, env=env)
        assert done.returncode == 3
        assert "rela: prior=clip_vitb16 needs open_clip_model.safetensors (about 599 MB)" in done.stderr
        assert len(done.stderr.splitlines()) < 12
    assert not (tmp_path / "outputs" / "cache").exists()


def test_fetch_of_what_is_there(rela: Rela, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    done = rela("fetch", "-m", "prior=patches,checkpoint", "prior.weights=w.safetensors")
    assert done.returncode == 2, "patches has no weights"
    done = rela("fetch", "prior=checkpoint", "prior.weights=w.safetensors", "dataset=digits")
    assert done.returncode == 0
    assert "prior=checkpoint (yours): w.safetensors, 1.1 MB, sha256 " in done.stdout
    assert "dataset=digits: 1437 train, 360 test images" in done.stdout


# ----------------------------------------------------------------------------------------------------- identity, cards


def test_random_weights_are_called_so() -> None:
    from rela_cli.pipeline.run import Run
    from rela_cli.weights.locate import shown_name
    from rela_cli.weights.seen import labels_seen

    made = config("prior=imagenet_resnet18", "prior.weights=random", "batch_size=16")
    assert shown_name(made.prior) == "imagenet_resnet18 (random weights)"
    assert labels_seen(made.prior) == ()
    assert "imagenet_resnet18-random" in Run(made).name
    assert Run(made).settings["prior"]["name"] == "imagenet_resnet18 (random weights)"


def test_a_card_changes_no_fingerprint() -> None:
    from rela_cli.pipeline.run import Run

    plain, spoken = (
        Run(config("prior=imagenet_resnet18", "prior.weights=random", "batch_size=16", *more))
        for more in ([], ["prior.card.licence=none", "learner.card.features=7"])
    )
    assert plain.hash == spoken.hash
    assert plain.features.hash == spoken.features.hash
    assert Part("a", "b", {"learner": {"name": "c", "card": {"features": 3}}}).identity["learner"] == {"name": "c"}


# ------------------------------------------------------------------------------------------------------ public weights


@pytest.fixture(scope="session")
def rela_data() -> Path:
    folder = os.environ.get("RELA_DATA")
    if not folder:
        pytest.skip("RELA_DATA is not set: the folder with data/cifar10-jpeg.tar.xz and weights/ is needed")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar10_test(rela_data: Path) -> tuple[Tensor, Tensor]:
    """The 10,000 test images, unpacked once into a cache of our own."""
    archive = rela_data / "data" / "cifar10-jpeg.tar.xz"
    root = Path.home() / ".cache" / "rela-tests" / f"cifar10-jpeg-{archive.stat().st_size}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_suffix(".lock")):  # two processes of pytest may want it
        if not (root / "complete").exists():
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.isfile() and member.name.removeprefix("./").split("/")[-3:][0] == "test":
                        target = root.joinpath(*member.name.split("/")[-3:])
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
            (root / "complete").touch()
    dataset = ImageFolder(root=str(root / "test"), image_size=None, limit=None, test_limit=None, seed=0, flip=True)
    images, labels = dataset.load("train")
    assert images.shape == (10_000, 32, 32, 3)
    assert labels is not None
    assert dataset.label_set == "cifar10", "a folder of CIFAR-10 is CIFAR-10 by its class names"
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


@pytest.mark.parametrize(
    ("model", "accuracy", "every", "within"), [("resnet20", 0.810, 1, 0.0015), ("resnet56", 0.832, 10, 0.03)]
)
def test_public_weights_load_strictly_and_score(
    rela_data: Path, cifar10_test: tuple[Tensor, Tensor], model: str, accuracy: float, every: int, within: float
) -> None:
    """The check that decoding, mean, std and the network are right: 81.0 % and 83.2 % with their own classifier.

    The second by a tenth of the images, within two and a half standard errors.
    """
    path = rela_data / "weights" / f"{model}-cifar10.safetensors"
    made, head = checkpoint(path, model), load_file(path)
    with torch.inference_mode():
        right = [
            ((made(x) @ head["linear.weight"].T + head["linear.bias"]).argmax(1) == y).sum().item()
            for x, y in zip(*(part[::every].split(250) for part in cifar10_test), strict=True)
        ]
    assert every * sum(right) / 10_000 == pytest.approx(accuracy, abs=within)


def test_both_files_have_exactly_our_keys(rela_data: Path) -> None:
    for model, depth in (("resnet20", 20), ("resnet56", 56)):
        keys = load_file(rela_data / "weights" / f"{model}-cifar10.safetensors").keys()
        ours = {key for key in cifar_resnet(depth, 16).state_dict() if not key.endswith("num_batches_tracked")}
        assert keys == ours | {"linear.weight", "linear.bias"}
