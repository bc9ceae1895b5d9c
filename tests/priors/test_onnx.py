"""prior=onnx: small models written here, field by field of onnx.proto3, against the same network in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.config.compose import compose
from rela_cli.config.parts import instantiate
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline import pipeline
from rela_cli.pipeline.run import Run
from rela_cli.priors.base import Prior
from rela_cli.weights import locate
from rela_cli.weights.onnx_file import external_files, is_onnx
from tests.factories import config

FLOAT, UINT8, INT, INTS, EXTERNAL = 1, 2, 2, 7, 1  # of TensorProto and AttributeProto
WEIGHT = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(key: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return number(key << 3) + number(value)
    data = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(data)) + data


def node(kind: str, inputs: list[str], output: str, **options: int | list[int]) -> bytes:
    body = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind)
    for name, value in options.items():
        kept = field(3, value) + field(20, INT) if isinstance(value, int) else b""
        kept = kept or b"".join(field(8, item) for item in value) + field(20, INTS)  # type: ignore[union-attr]
        body += field(5, field(1, name) + kept)
    return field(1, body)


def value(key: int, name: str, kind: int, shape: list[int | str]) -> bytes:
    dims = b"".join(field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in shape)
    return field(key, field(1, name) + field(2, field(1, field(1, kind) + field(2, dims))))


def tensor(beside: str | None) -> bytes:
    body = b"".join(field(1, size) for size in WEIGHT.shape) + field(2, FLOAT) + field(8, "w")
    raw = WEIGHT.numpy().tobytes()
    pairs = {"location": beside or "", "offset": "0", "length": str(len(raw))}
    entries = b"".join(field(13, field(1, name) + field(2, text)) for name, text in pairs.items())
    return field(5, body + (entries + field(14, EXTERNAL) if beside else field(9, raw)))


def model(
    path: Path,
    shape: list[int | str] | None = None,
    kind: int = FLOAT,
    outputs: tuple[str, ...] = ("vector",),
    beside: str | None = None,
) -> Path:
    """A convolution, its positive part, and its mean: `map` (B, 4, 4, 4) and `vector` (B, 4) of images of 8 px."""
    shape = shape or ["batch", 3, 8, 8]
    batch, first, steps = shape[0], "images", b""
    if shape[3] == 3:
        steps += node("Transpose", [first], "nchw", perm=[0, 3, 1, 2])
        first = "nchw"
    if kind == UINT8:
        steps += node("Cast", [first], "floats", to=FLOAT)
        first = "floats"
    steps += node("Conv", [first, "w"], "conv", strides=[2, 2]) + node("Relu", ["conv"], "map")
    steps += node("GlobalAveragePool", ["map"], "mean") + node("Flatten", ["mean"], "vector")
    shapes: dict[str, list[int | str]] = {"vector": [batch, 4], "map": [batch, 4, "h", "w_"]}
    graph = steps + field(2, "g") + tensor(beside) + value(11, "images", kind, shape)
    graph += b"".join(value(12, name, FLOAT, shapes[name]) for name in outputs)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17)))
    if beside:
        (path.parent / beside).write_bytes(WEIGHT.numpy().tobytes())
    return path


IMAGES = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
NORMAL = (IMAGES / 255 - MEAN) / STD


def features(pixels: Tensor) -> Tensor:
    return F.conv2d(pixels, WEIGHT, stride=2).relu().mean((2, 3))


def prior(path: Path, *words: str) -> Prior:
    made: Prior = instantiate(locate.located(config("prior=onnx", f"prior.weights={path}", *words).prior))
    return made


@pytest.mark.parametrize(
    "shape", [["batch", 3, 8, 8], ["n", 8, 8, 3], [1, 3, 8, 8], [2, 3, 8, 8], ["n", 3, "h", "w"]], ids=str
)
def test_layouts_and_batches(tmp_path: Path, shape: list[int | str]) -> None:
    """A fixed batch is filled up; an open size is asked for."""
    size = ["prior.image_size=8"] if "h" in shape else []
    made = prior(model(tmp_path / "m.onnx", shape), *size)
    assert made.feature_dim == 4
    assert torch.allclose(made(IMAGES), features(NORMAL), atol=1e-5)


def test_whole_numbers_go_in_as_they_are(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", ["n", 8, 8, 3], UINT8)
    assert torch.allclose(prior(path)(IMAGES), features(IMAGES.float()), atol=1e-3)
    with pytest.raises(ConfigError, match=r"takes numbers from 0 to 255 as they are"):
        prior(path, "prior.mean=[0,0,0]")


def test_outputs_and_pooling(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", outputs=("map", "vector"))
    with pytest.raises(ConfigError, match=r"several outputs; say prior\.output= one of map .*, vector \['batch', 4\]"):
        prior(path)
    with pytest.raises(ConfigError, match=r"has no output vecto, did you mean vector\?"):
        prior(path, "prior.output=vecto")
    with pytest.raises(ConfigError, match=r"m\.onnx: it gives \(2, 4, 4, 4\), a map: say prior\.pool=mean"):
        prior(path, "prior.output=map")
    assert torch.allclose(prior(path, "prior.output=vector")(IMAGES), features(NORMAL), atol=1e-5)
    assert torch.allclose(prior(path, "prior.output=map", "prior.pool=mean")(IMAGES), features(NORMAL), atol=1e-5)
    swapped = prior(path, "prior.output=vector", "prior.channels=bgr")(IMAGES)
    assert torch.allclose(swapped, features((IMAGES.flip(1) / 255 - MEAN) / STD), atol=1e-5)


def test_weights_beside_the_model_are_part_of_what_it_is(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", beside="m.data")
    assert external_files(path) == [tmp_path / "m.data"]
    assert torch.allclose(prior(path)(IMAGES), features(NORMAL), atol=1e-5)
    part = config("prior=onnx", f"prior.weights={path}").prior
    before = locate.identity(part)
    (tmp_path / "m.data").write_bytes((2 * WEIGHT).numpy().tobytes())
    assert locate.identity(part) != before
    assert torch.allclose(prior(path)(IMAGES), features(NORMAL) * 2, atol=1e-4)
    (tmp_path / "m.data").unlink()
    with pytest.raises(MissingError, match=r"keeps weights in m\.data, which is not there"):
        locate.locate(part)
    (tmp_path / "inner").mkdir()
    (tmp_path / "m.data").write_bytes(b"x")
    outside = model(tmp_path / "inner" / "m.onnx", beside="../m.data")
    with pytest.raises(ConfigError, match=r"wants to read \.\./m\.data, which lies outside its folder"):
        locate.locate(config("prior=onnx", f"prior.weights={outside}").prior)


def test_what_cannot_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path / "m.onnx")

    def refused(message: str, *words: str, error: type[Exception] = ConfigError) -> None:
        with pytest.raises(error, match=message):
            prior(path, *words)

    refused(r"takes images of 8 px, not prior\.image_size=16", "prior.image_size=16")
    model(path, ["n", 3, "h", "w"])
    refused(r"any size: say prior\.image_size=224")
    model(path, ["n", "c", 8, 8])
    refused("it has to say 3 channels")
    with pytest.raises(ConfigError, match=r"is an ONNX model: say prior=onnx prior\.weights="):
        locate.locate(config("prior=exported", f"prior.weights={path}", "prior.trust=true").prior)
    whole = model(path).read_bytes()
    assert is_onnx(path)
    path.write_bytes(whole[: len(whole) // 2])
    refused("truncated or damaged", error=MissingError)
    torch.save({"conv1.weight": WEIGHT}, path.with_suffix(".pth"))
    with pytest.raises(ConfigError, match="is no ONNX model: say prior=checkpoint"):
        locate.locate(config("prior=onnx", f"prior.weights={path.with_suffix('.pth')}").prior)
    monkeypatch.setattr("rela_cli.weights.onnx_file.find_spec", lambda name: None)
    refused(r"needs onnxruntime: pip install 'rela-cli\[onnx\]'")


def test_threads_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[Any] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: asked.append((a, k)) or session(*a, **k))
    prior(model(tmp_path / "m.onnx"))
    ((_, options), keywords) = asked[0]
    assert options.intra_op_num_threads == torch.get_num_threads()
    assert keywords["providers"] == ["CPUExecutionProvider"]


def test_a_run_from_an_onnx_file(tmp_path: Path) -> None:
    """Extraction, targets and training; what a table calls it is the file's name."""
    path = model(tmp_path / "small net.onnx")
    words = ("dataset.n=16", "dataset.n_test=8", "dataset.size=8", "batch_size=8", "epochs=1", "learner.width=4")
    own = ("prior=onnx", f"prior.weights={path}", "probe.protocols=[knn]", f"paths.outputs={tmp_path}/outputs")
    made = compose(["dataset=fake", *words, *own])
    assert pipeline.run(made).status == "run"
    assert Run(made).folder.name.startswith("fake-small_net-resnet18-simclr")
    assert (Run(made).features.manifest or {})["feature_dim"] == 4
