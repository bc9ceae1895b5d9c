"""What each format holds: weights or a program, its preprocessing, and load.py, which runs without rela."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.commands.export.backbone import Backbone, is_timm, is_torchvision
from rela_cli.commands.export.loading import json_text, loading_code, timm_config
from rela_cli.errors import ConfigError, RelaError

if TYPE_CHECKING:
    import numpy as np
    import torch

FORMATS = ("torchvision", "timm", "huggingface", "onnx", "pt2")
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
EXTERNAL_DATA_BYTES = (
    1_500_000_000  # bytes of weights from which on an ONNX file keeps them in a file beside it; it ends at 2 GB
)
ALLOWED = 1e-4  # of the largest feature: what other kernels may change
TRIED_IMAGES = 3  # images that a format is tried with, and one alone


def check(backbone: Backbone, form: str) -> None:
    """Before torch is imported: the libraries are there, and the format can hold this network.

    Raises:
        ConfigError: not so.
    """
    if missing := [name for name in NEEDS.get(form, ()) if find_spec(name) is None]:
        raise ConfigError(f"--format {form} needs {' and '.join(missing)}: pip install 'rela-cli[export]'")
    if form == "torchvision" and not is_torchvision(backbone.learner):
        raise ConfigError(f"{backbone.title} is no network of torchvision: say {fitting_formats(backbone)}")
    if form in ("timm", "huggingface") and not is_timm(backbone.learner):
        why = "timm can build ResNets with learner.stem=imagenet learner.width=64, and learner=timm or vit_s16"
        raise ConfigError(f"{backbone.title} is no network of timm: say {fitting_formats(backbone)} ({why})")


def fitting_formats(backbone: Backbone) -> str:
    """The formats that can hold a network."""
    fits = {"torchvision": is_torchvision(backbone.learner), "timm": is_timm(backbone.learner)}
    names = [form for form in FORMATS if fits.get("timm" if form == "huggingface" else form, True)]
    return f"--format {' or '.join(names)}"


def write(backbone: Backbone, form: str, folder: Path) -> None:
    """The files of a format but for the card."""
    WRITERS[form](backbone, folder)
    (folder / "load.py").write_text(loading_code(backbone, form), encoding="utf-8")
    (folder / "preprocessing.json").write_text(json_text(backbone.preprocessing), encoding="utf-8")


def write_weights(backbone: Backbone, folder: Path) -> None:
    """model.safetensors under the library's own names."""
    from safetensors.torch import save_file

    save_file(backbone.state, folder / "model.safetensors", metadata={"format": "pt"})


def write_timm(backbone: Backbone, folder: Path) -> None:
    """Weights, and config.json."""
    write_weights(backbone, folder)
    (folder / "config.json").write_text(json_text(timm_config(backbone)), encoding="utf-8")


def write_pt2(backbone: Backbone, folder: Path) -> None:
    """A program of torch.export; preprocessing.json is in the file, too."""
    import torch

    network, example = fed(backbone)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    facts = {"preprocessing.json": json_text(backbone.preprocessing)}
    torch.export.save(program, folder / "model.pt2", extra_files=facts)


def write_onnx(backbone: Backbone, folder: Path) -> None:
    """A graph from `pixels` to `features`; its preprocessing stands in the file's metadata."""
    import onnx
    import torch

    network, example = fed(backbone)
    path, apart = folder / "model.onnx", sum(t.nbytes for t in backbone.state.values()) > EXTERNAL_DATA_BYTES
    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=apart,
    )
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {"preprocessing": json_text(backbone.preprocessing)})
    onnx.save(model, path)


WRITERS: dict[str, Callable[[Backbone, Path], None]] = {
    "torchvision": write_weights,
    "timm": write_timm,
    "huggingface": write_timm,
    "pt2": write_pt2,
    "onnx": write_onnx,
}


def fed(backbone: Backbone) -> tuple[torch.nn.Module, torch.Tensor]:
    """The network behind its normalisation, (B, 3, S, S) uint8 -> (B, D), and two images to try it with."""
    import torch

    class Fed(torch.nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = backbone.module
            for key in ("mean", "std"):
                self.register_buffer(key, torch.tensor(backbone.preprocessing[key]).view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network((pixels.float() / 255 - self.mean) / self.std)  # type: ignore[no-any-return]

    size = backbone.preprocessing["size"]
    return Fed().eval(), torch.zeros(2, 3, size, size, dtype=torch.uint8)


def largest_difference(backbone: Backbone, folder: Path) -> float:
    """The largest difference between the features that load.py gives and ours, as a share of the largest feature.

    Raises:
        RelaError: more than 1e-4: the other library computes something else.
    """
    import numpy as np
    import torch

    images = trial_images(backbone)
    theirs: dict[str, Any] = runpy.run_path(str(folder / "load.py"))
    model = theirs["load"]()
    network, _ = fed(backbone)
    with torch.no_grad():
        ours = network(torch.from_numpy(np.stack([theirs["pixels"](image) for image in images]))).numpy()
    found = np.concatenate([theirs["embed"](model, part) for part in (images, images[:1])])
    apart = float(np.abs(found - np.concatenate([ours, ours[:1]])).max() / max(float(np.abs(ours).max()), 1e-12))
    if not apart <= ALLOWED:
        raise RelaError(
            f"the exported network gives other features than {backbone.run.folder}: they differ by {apart:.1g} of the "
            f"largest one. This is a defect; nothing was written"
        )
    return apart


def trial_images(backbone: Backbone) -> list[Any]:
    """A few images of noise, the same each time, of another size than the network's."""
    import numpy as np
    from PIL import Image

    random, side = np.random.RandomState(0), backbone.preprocessing["resize"] + 5
    noise: np.ndarray = random.randint(0, 256, (TRIED_IMAGES, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]
