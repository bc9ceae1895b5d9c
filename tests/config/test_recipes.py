"""Presets against the recipes that their headers cite, and every method: does it learn?"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from rela_cli.config.compose import compose
from rela_cli.config.schema import CONF_DIR, Config
from rela_cli.pipeline.pipeline import run

# ------------------------------------------------------------------------------------- published recipes, as published

SOLO = {  # solo-learn, scripts/pretrain/cifar: published top-1, optimizer, rate at batch 256, decay, head widths
    "byol": ("92.58", "lars", 1.0, 1e-5, (4096, 256)),
    "dino": ("89.52", "lars", 0.3, 1e-6, (2048, 256)),
    "simclr": ("90.74", "lars", 0.4, 1e-4, (2048, 256)),
    "barlow_twins": ("92.10", "lars", 0.3, 1e-4, (2048, 2048)),
    "vicreg": ("92.07", "lars", 0.3, 1e-4, (2048, 2048)),
    "moco_v3": ("93.10", "lars", 0.3, 1e-6, (4096, 256)),
    "simsiam": ("90.51", "sgd", 0.5, 1e-5, (2048, 2048)),
    "swav": ("89.17", "lars", 0.6, 1e-6, (2048, 128)),
}
LIGHTLY = {  # lightly, cifar10_benchmark.py: published kNN top-1, optimizer, rate at batch 128, decay, widths
    "byol": (".869", "sgd", 0.06, 5e-4, (1024, 256)),
    "dino": (".840", "sgd", 0.06, 5e-4, (2048, 256)),
    "simclr": (".847", "sgd", 0.06, 5e-4, (512, 128)),
    "barlow_twins": (".842", "sgd", 0.06, 5e-4, (2048, 2048)),
    "simsiam": (".819", "sgd", 0.06, 5e-4, (2048, 2048)),
    "swav": (".812", "adamw", 1e-3, 1e-6, (512, 128)),
}
PRESETS = [(f"solo_cifar10_{m}", m, 256, 1000, *recipe) for m, recipe in SOLO.items()]
PRESETS += [(f"lightly_cifar10_{m}", m, 128, 200, *recipe) for m, recipe in LIGHTLY.items()]


@pytest.mark.parametrize(
    ("preset", "method", "batch", "epochs", "number", "optimizer", "lr", "decay", "widths"),
    PRESETS,
    ids=[preset[0] for preset in PRESETS],
)
def test_a_preset_is_the_recipe_it_cites(
    preset: str,
    method: str,
    batch: int,
    epochs: int,
    number: str,
    optimizer: str,
    lr: float,
    decay: float,
    widths: tuple[int, int],
) -> None:
    config = compose([f"experiment={preset}"])
    parts = (config.dataset.name, config.prior.name, config.learner.name, config.method.name, config.optimizer.name)
    assert parts == ("cifar10", "none", "resnet18", method, optimizer)
    assert (config.learner.options["stem"], config.learner.options["width"]) == ("cifar", 64)
    assert (config.batch_size, config.epochs, config.budget) == (batch, epochs, 1.0)
    options = config.optimizer.options
    assert (options["lr"], options["weight_decay"], options["schedule"]) == (lr, decay, "cosine")
    assert options["warmup_epochs"] == (10 if preset.startswith("solo") else 0)
    assert (config.method.options["hidden_dim"], config.method.options["projection_dim"]) == widths
    header = " ".join(line.lstrip("# ") for line in text_of(preset).splitlines() if line.startswith("#"))
    for word in (number, "Source:", "Command:", "Not run here", "Differs from the source", f"experiment={preset}"):
        assert word in header


def text_of(preset: str) -> str:
    return (CONF_DIR / "experiment" / f"{preset}.yaml").read_text()


def test_what_else_the_recipes_fix() -> None:
    """Running averages, LARS' constants, temperatures and blur."""
    for name in SOLO:
        config = compose([f"experiment=solo_cifar10_{name}"])
        if config.optimizer.name == "lars":
            wanted = {"momentum": 0.9, "trust_coefficient": 0.02, "clip": True, "exclude_bias_and_norm": True}
            assert wanted.items() <= config.optimizer.options.items()
        assert blur(config) == ((0.5, 0.5) if name in ("simclr", "simsiam", "swav") else (0.0, 0.0))
    averages = {name: averages_of(f"solo_cifar10_{name}") for name in ("byol", "dino", "moco_v3")}
    assert averages == {"byol": (0.99, "cosine"), "dino": (0.9995, "cosine"), "moco_v3": (0.99, "cosine")}
    assert averages_of("lightly_cifar10_byol") == averages_of("lightly_cifar10_dino") == (0.99, "constant")
    assert all(blur(compose([f"experiment=lightly_cifar10_{name}"])) == (0.0, 0.0) for name in LIGHTLY)


def averages_of(preset: str) -> tuple[float, str]:
    options = compose([f"experiment={preset}"]).method.options
    return options["ema"], options["ema_schedule"]


def blur(config: Config) -> tuple[float, float]:
    options = config.method.options
    return options["view1"].blur_p, options["view2"].blur_p


def test_dino_with_local_crops_probes_the_teacher() -> None:
    config = compose(["experiment=dino_local_crops"])
    assert config.method.options["local_views"] == 6
    assert config.probe.network == "target"
    assert compose(["method=dino"]).method.options["local_views"] == 0


@pytest.mark.parametrize("path", sorted((CONF_DIR / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_docs_know_every_method_and_preset(path: Path) -> None:
    page = (CONF_DIR.parent / "docs" / "methods.md").read_text()
    assert f"`{path.stem}`" in page
    for preset in (CONF_DIR / "experiment").glob(f"*_cifar10_{path.stem}.yaml"):
        assert preset.stem in page


# ----------------------------------------------------------------------------------------------------- does it learn?

TRIAL = ("prior=none", "runtime.threads=1", "runtime.eval_every_epochs=0", "probe.protocols=[lbfgs]", "epochs=8")
WORDS = {path.stem: (f"experiment=cifar10_mini_{path.stem}",) for path in (CONF_DIR / "method").glob("*.yaml")}
WORDS |= {"simclr": ("experiment=cifar10_mini",), "simsiam": (*WORDS["simsiam"], "epochs=24")}  # at 8 about 3 points


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder train/<class> and test/<class> of CIFAR-10, unpacked once into a cache of our own."""
    folder = os.environ.get("RELA_DATA")
    if not folder:
        pytest.skip("RELA_DATA is not set: the folder with data/cifar10-jpeg.tar.xz is needed")
    archive = Path(folder) / "data" / "cifar10-jpeg.tar.xz"
    root = Path.home() / ".cache" / "rela-tests" / f"cifar10-jpeg-whole-{archive.stat().st_size}"
    if not (root / "complete").exists():
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and len(parts := member.name.split("/")) >= 3:
                    target = root.joinpath(*parts[-3:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
        (root / "complete").touch()
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", sorted(WORDS))
def test_it_learns(tmp_path: Path, cifar10: Path, method: str) -> None:
    """lbfgs on 5,000 CIFAR-10 images: 5 points above the same network untrained; two minutes each, SimSiam five."""
    config = compose([*TRIAL, f"dataset.root={cifar10}", f"paths.outputs={tmp_path}", *WORDS[method]])
    assert config.method.name == method
    result = json.loads((run(config).folder / "result.json").read_text())  # type: ignore[operator]
    trained, untrained = result["probe"]["lbfgs"]["top1"], result["baselines"]["untrained"]["lbfgs"]["top1"]
    print(f"{method}: {100 * trained:.1f} against {100 * untrained:.1f} untrained")
    assert trained >= untrained + 0.05
