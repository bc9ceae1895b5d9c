"""load.py of an exported folder: a few lines of the other library alone that load the network and feed it.

Each has load(), preprocess(image) and embed(model, images), so what is written here can be run and compared.
"""

from __future__ import annotations

import json
from typing import Any

from rela_cli.commands.export.backbone import RESNET_MODULE, Backbone
from rela_cli.config.schema import Part

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
FOLDER_CODE = "str(Path(__file__).parent)"
TENSORS = """
def embed(model, images):
    \"\"\"Features (N, D) of PIL images.\"\"\"
    with torch.no_grad():
        return model(torch.stack([preprocess(image) for image in images])).numpy()
"""


def loading_code(backbone: Backbone, form: str) -> str:
    """The text of load.py."""
    written, libraries = CODE[form]
    first, body = written(backbone)
    head = f'"""Loads this network with {libraries}; rela is not needed."""'
    return f"{head}\n\n{first}\n\n{pixels_code(backbone)}\n\n\n{body.strip()}\n"


def imports(*libraries: str, last: str = "") -> str:
    """The first lines of load.py."""
    names = "\n".join(f"import {name}" for name in ("numpy as np", *libraries))
    return f"from pathlib import Path\n\n{names}\nfrom PIL import Image, ImageOps\n{last}".rstrip()


def pixels_code(backbone: Backbone) -> str:
    """From a PIL image to pixels, as the network's own training images were brought to size."""
    fed = backbone.preprocessing
    size, resize = fed["size"], fed["resize"]
    start = (resize - size) // 2
    crop = f"\n    image = image.crop(({start}, {start}, {start + size}, {start + size}))" if resize != size else ""
    return f'''
def pixels(image):
    """(3, {size}, {size}) uint8 of a PIL image: its shorter side brought to {resize} pixels, the middle {size} kept."""
    image = ImageOps.fit(image.convert("RGB"), ({resize}, {resize}), Image.Resampling.BICUBIC){crop}
    return np.array(image).transpose(2, 0, 1)
'''.rstrip()


def normalised_code(backbone: Backbone) -> str:
    """preprocess() and embed() of a network that takes normalised floats."""
    fed = backbone.preprocessing
    return (
        f'''
MEAN = torch.tensor({fed["mean"]}).view(3, 1, 1)
STD = torch.tensor({fed["std"]}).view(3, 1, 1)


def preprocess(image):
    """A PIL image as the network wants it: (3, {fed["size"]}, {fed["size"]}) float32."""
    return (torch.from_numpy(pixels(image)) / 255 - MEAN) / STD

'''
        + TENSORS
    )


def of_torchvision(backbone: Backbone) -> tuple[str, str]:
    """torchvision's class with the layers that the learner changes, and a file of weights."""
    learner = backbone.learner
    building = resnet_code(learner) if learner.target.startswith(RESNET_MODULE) else model_code(backbone)
    return (
        imports("torch", "torchvision", last="from safetensors.torch import load_file"),
        f'''
def load(folder={FOLDER_CODE}):
    """The network with its weights, in eval mode: (B, 3, S, S) float, normalised -> (B, {backbone.width})."""
{building}
    model.load_state_dict(load_file(f"{{folder}}/model.safetensors"))
    return model.eval()

'''
        + normalised_code(backbone),
    )


def resnet_code(learner: Part) -> str:
    """A ResNet with our stem and width."""
    name, width, lines = learner.target.rpartition(".")[2], learner.options["width"], []
    lines.append(f"model = torchvision.models.{name}()")
    if learner.options["stem"] == "cifar":
        lines.append(f"model.conv1 = torch.nn.Conv2d(3, {width}, 3, 1, 1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    elif width != 64:
        lines.append(f"model.conv1 = torch.nn.Conv2d(3, {width}, 7, 2, 3, bias=False)")
    if width != 64:
        block = "BasicBlock" if name in ("resnet18", "resnet34") else "Bottleneck"
        lines.append(f"model.bn1, model.inplanes = torch.nn.BatchNorm2d({width}), {width}")
        lines.append(f"for i, count in enumerate({BLOCKS[name]}):")
        lines.append(f"    block = torchvision.models.resnet.{block}")
        lines.append(f"    layer = model._make_layer(block, {width} * 2**i, count, stride=1 if i == 0 else 2)")
        lines.append('    setattr(model, f"layer{i + 1}", layer)')
    lines.append("model.fc = torch.nn.Identity()")
    return "\n".join(f"    {line}" for line in lines)


def model_code(backbone: Backbone) -> str:
    """Any classifier of torchvision without its last layer."""
    from rela_cli.learners.torchvision import known_options

    name, last = backbone.learner.options["model"], backbone.module.classifiers[0]  # type: ignore[index]
    options = known_options(name, image_size=backbone.preprocessing["size"])
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    parent, _, child = str(last).rpartition(".")
    return (
        f'    model = torchvision.models.get_model("{name}", weights=None{given})\n'
        f'    setattr(model.get_submodule("{parent}"), "{child}", torch.nn.Identity())'
    )


def of_timm(backbone: Backbone) -> tuple[str, str]:
    """A folder that timm opens by itself."""
    return (
        imports("timm", "torch"),
        f'''
def load(folder={FOLDER_CODE}):
    """The network with its weights, in eval mode: (B, 3, S, S) float, normalised -> (B, {backbone.width})."""
    return timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()

'''
        + normalised_code(backbone),
    )


def of_pt2(backbone: Backbone) -> tuple[str, str]:
    """A program; what divides by 255, mean and std is in it."""
    return (
        imports("torch"),
        f'''
def load(folder={FOLDER_CODE}):
    """The program: (B, 3, S, S) uint8 for any B -> (B, {backbone.width}) float32. Mean and std are in it."""
    return torch.export.load(f"{{folder}}/model.pt2").module()


def preprocess(image):
    """A PIL image as the program wants it."""
    return torch.from_numpy(pixels(image))

'''
        + TENSORS,
    )


def of_onnx(backbone: Backbone) -> tuple[str, str]:
    """A graph; what divides by 255, mean and std is in it."""
    return (
        imports("onnxruntime"),
        f'''
def load(folder={FOLDER_CODE}):
    """The graph: (B, 3, S, S) uint8 for any B -> (B, {backbone.width}) float32. Mean and std are in it."""
    return onnxruntime.InferenceSession(f"{{folder}}/model.onnx", providers=["CPUExecutionProvider"])


def preprocess(image):
    """A PIL image as the graph wants it."""
    return pixels(image)


def embed(model, images):
    """Features (N, D) of PIL images."""
    return model.run(["features"], {{"pixels": np.stack([preprocess(image) for image in images])}})[0]
''',
    )


CODE = {  # what writes the imports and the body, and what it needs
    "torchvision": (of_torchvision, "torchvision and safetensors"),
    "timm": (of_timm, "timm"),
    "huggingface": (of_timm, "timm"),
    "pt2": (of_pt2, "torch"),
    "onnx": (of_onnx, "onnxruntime"),
}


def timm_config(backbone: Backbone) -> dict[str, Any]:
    """config.json of a folder that timm opens: the architecture, its arguments, and the preprocessing."""
    learner, fed = backbone.learner, backbone.preprocessing
    if learner.target.startswith(RESNET_MODULE):
        name, given = learner.target.rpartition(".")[2], {}
    else:
        from rela_cli.learners.timm import timm_arguments

        name = learner.options["model"]
        own = {key: value for key, value in learner.options.items() if key != "model"}
        given = own | timm_arguments(name, fed["size"])
    size = [3, fed["size"], fed["size"]]
    share = fed["size"] / (fed["resize"] + 1e-6)  # timm takes the whole part of size / share
    shape = {"input_size": size, "fixed_input_size": "img_size" in given, "crop_pct": min(1.0, share)}
    shape |= {"crop_mode": "center", "interpolation": fed["interpolation"], "mean": fed["mean"], "std": fed["std"]}
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.width,
        **({"model_args": given} if given else {}),
        "pretrained_cfg": {"num_classes": 0, **shape},
    }


def json_text(facts: Any) -> str:
    """JSON for people."""
    return json.dumps(facts, indent=2) + "\n"
