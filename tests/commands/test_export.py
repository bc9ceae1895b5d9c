"""`rela export`: each format is loaded by its own library and gives the trained network's features, for any batch."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config

from rela_cli import cli, load_backbone
from rela_cli.commands.export import formats
from rela_cli.config.compose import compose
from rela_cli.config.reading import to_tree
from rela_cli.learners.build import build_backbone, saved_state
from rela_cli.pipeline.run import yaml_ready
from rela_cli.store.files import write_json
from tests.factories import pixels
from tests.promises.helpers import WORDS, go

MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.25]


def trained(folder: Path, *learner: str, size: int = 32, resize: int | None = None, network: str = "online") -> Path:
    """What a finished run leaves, with a network that was never trained; running statistics are not 0 and 1."""
    made = compose(["dataset=fake", *learner])
    backbone = build_backbone(made.learner, 0, size).train()
    with torch.no_grad():
        backbone(torch.randn(4, 3, size, size))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(yaml_ready(to_tree(made))))
    fed = {"image_size": size, "decoded_size": resize or size, "mean": MEAN, "std": STD}
    write_json(
        folder / "manifest.json", {"status": "finished", "train": fed, "command": "rela train dataset.root=/a/b/c"}
    )
    save_file(saved_state(backbone), folder / "backbone.safetensors")
    return folder


def features(run: Path, images: torch.Tensor) -> np.ndarray:
    """What the run's network gives for (B, 3, S, S) uint8."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        found: np.ndarray = load_backbone(run)((images / 255 - mean) / std).numpy()
    return found


def export(run: Path, to: Path, form: str) -> Path:
    assert cli.main(["export", str(run), "--to", str(to), "--format", form]) == 0
    return to


def close(found: Any, expected: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(found) - expected).max() <= 1e-4 * np.abs(expected).max())


RESNET = ("learner=resnet18", "learner.width=4")
PLAIN = ("learner=resnet18", "learner.stem=imagenet", "learner.width=64")
VIT = ("learner=timm", "learner.model=test_vit")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_onnx_takes_any_batch(tmp_path_factory: pytest.TempPathFactory, count: int, onnx_model: Path) -> None:
    session = onnxruntime.InferenceSession(str(onnx_model / "model.onnx"), providers=["CPUExecutionProvider"])
    (pixels_in,) = session.get_inputs()
    assert (pixels_in.name, pixels_in.type, pixels_in.shape[1:]) == ("pixels", "tensor(uint8)", [3, 16, 16])
    images = pixels(count, 16)
    (found,) = session.run(["features"], {"pixels": images.numpy()})
    assert close(found, features(onnx_model.parent / "run", images))


def test_onnx_says_its_preprocessing(onnx_model: Path) -> None:
    model = onnx.load(onnx_model / "model.onnx")
    onnx.checker.check_model(model)
    facts = json.loads({prop.key: prop.value for prop in model.metadata_props}["preprocessing"])
    assert facts == {"resize": 18, "size": 16, "interpolation": "bicubic", "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("onnx")
    run = trained(place / "run", *RESNET, size=16, resize=18)
    return export(run, place / "model", "onnx")


def test_onnx_is_a_prior_again(onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    image = pixels(1, 16)
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save("photos/a.png")
    words = ["embed", "prior=onnx", f"prior.weights={onnx_model}/model.onnx", "photos", "--to", "f.npy"]
    assert cli.main(words) == 0
    assert close(np.load("f.npy"), features(onnx_model.parent / "run", image))


def test_pt2_takes_any_batch(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *RESNET, size=16)
    folder = export(run, tmp_path / "model", "pt2")
    extra = {"preprocessing.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["preprocessing.json"])["size"] == 16
    for count in (1, 2, 5):
        images = pixels(count, 16)
        assert close(program(images).detach(), features(run, images))


@pytest.mark.parametrize(
    "learner",
    [
        RESNET,
        PLAIN,
        ("learner=resnet50", "learner.stem=imagenet", "learner.width=4"),
        ("learner=mobilenet_v3", "learner.model=mobilenet_v3_small"),
    ],
    ids=lambda words: "-".join(word.partition("=")[2] for word in words),
)
def test_torchvision_builds_it(tmp_path: Path, learner: tuple[str, ...]) -> None:
    run = trained(tmp_path / "run", *learner)
    folder = export(run, tmp_path / "model", "torchvision")
    code = (folder / "load.py").read_text()
    assert not re.search(r"import.*rela", code)
    images = pixels(2, 32)
    theirs = runpy.run_path(str(folder / "load.py"))
    model = theirs["load"]()
    assert type(model).__module__.startswith("torchvision")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert close(model((images / 255 - mean) / std).detach(), features(run, images))
    found = theirs["embed"](model, [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images])
    assert close(found, features(run, images))
    if learner == PLAIN:  # torchvision's own class takes the file as it is
        own = torchvision.models.resnet18()
        own.fc = torch.nn.Identity()
        own.load_state_dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(("form", "learner"), [("timm", PLAIN), ("huggingface", VIT)], ids=["resnet18", "vit"])
def test_timm_opens_the_folder(tmp_path: Path, form: str, learner: tuple[str, ...]) -> None:
    """With timm's own transforms, made from config.json, from a file to features."""
    run = trained(tmp_path / "run", *learner, size=32, resize=36)
    folder = export(run, tmp_path / "model", form)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    fed = resolve_model_data_config(model)
    assert [list(fed[key]) for key in ("input_size", "mean", "std")] == [[3, 32, 32], MEAN, STD]
    show: Callable[[Image.Image], torch.Tensor] = create_transform(**fed, is_training=False)
    image = pixels(1, 36)
    with torch.no_grad():
        found = model(show(Image.fromarray(image[0].permute(1, 2, 0).numpy()))[None])
    assert close(found, features(run, image[..., 2:34, 2:34]))
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: timm") == (form == "huggingface")


def test_transformers_opens_the_folder_with_its_timm_wrapper(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not here: pip install transformers")
    run = trained(tmp_path / "run", *VIT)
    model = transformers.AutoModel.from_pretrained(export(run, tmp_path / "model", "huggingface")).eval()
    assert type(model).__name__ == "TimmWrapperModel"
    images = pixels(3, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        found = model((images / 255 - mean) / std).pooler_output
    assert close(found, features(run, images))


def test_a_real_run_its_card_and_the_second_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    go(Path("outputs"), *WORDS)
    words = ["export", "latest", "--to", "model", "--format", "torchvision"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    result = json.loads(Path("outputs/runs/latest/result.json").read_text())
    card = Path("model/README.md").read_text()
    assert f"| knn | online | {100 * result['probe']['knn']['top1']:.1f} |" in card
    assert "32 test images, 1 seed" in card
    assert "targets of the prior random" in card and "budget 0.5, 1 epochs, seed 0" in card
    assert "The prior's pass is included" in card
    assert "Labels seen on the way, the prior's included**: none" in card
    assert "checked   torchvision" in out
    assert not list(Path().glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in Path("model").iterdir()}
    assert cli.main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("model").iterdir()} == before
    Path("model/load.py").write_text("changed")
    assert cli.main(words) == 2
    assert "has been changed" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
    assert "def load" in Path("model/load.py").read_text()


def test_a_card_shows_no_paths_and_what_is_not_known(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *RESNET, size=16)
    card = (export(run, tmp_path / "model", "torchvision") / "README.md").read_text()
    assert "dataset.root=.../c" in card and "/a/b" not in card
    assert "Not probed: no number was measured" in card
    assert "prior's included**: not known" in card


def test_other_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = trained(tmp_path / "run", *RESNET, size=16)
    write = formats.WRITERS["torchvision"]

    def wrong(backbone: Any, folder: Path) -> None:
        backbone.state["conv1.weight"].mul_(1.1)
        write(backbone, folder)

    monkeypatch.setitem(formats.WRITERS, "torchvision", wrong)
    assert cli.main(["export", str(run), "--to", str(tmp_path / "model"), "--format", "torchvision"]) == 1
    assert "gives other features" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


WRONG = {
    "export latest": (2, "say where to"),
    "export latest --to model": (2, "say which format: --format torchvision|timm"),
    "export latest --to model --format onxn": (2, "did you mean onnx?"),
    "export {run} --to model --format timm": (2, "no network of timm: say --format torchvision or onnx or pt2"),
    "export {run} --to taken --format pt2": (2, "taken is there, and is no export of rela"),
    "export {run} --to taken --format pt2 --overwrite": (2, "taken is there, and is no export of rela"),
    "export nosuch --to model --format pt2": (3, "no run nosuch"),
    "export {run} --to model --format pt2 --network target": (3, "has no target network"),
    "export {empty} --to model --format pt2": (3, "has no trained backbone: it is failed"),
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_input_is_one_screen(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", *RESNET, size=8)
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "empty" / "manifest.json", {"status": "failed"})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    status, part = WRONG[words]
    assert cli.main(words.format(run=run, empty=tmp_path / "empty").split()) == status
    error = capsys.readouterr().err
    assert part in error and "Traceback" not in error and len(error.splitlines()) <= 8
    assert not (tmp_path / "model").exists()
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_a_missing_library_is_said_with_the_line_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", *RESNET, size=8)
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else True)
    assert cli.main(["export", str(run), "--to", str(tmp_path / "model"), "--format", "onnx"]) == 2
    assert "needs onnxscript: pip install 'rela-cli[export]'" in capsys.readouterr().err
