"""The Python API: its names, its examples, and that a loop of one's own does what `rela train` does."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rela_cli as rela
from rela_cli import cli
from rela_cli.config.compose import compose
from rela_cli.config.lengths import lengths
from rela_cli.data.batches.subset import batches
from rela_cli.pipeline.run import Run
from rela_cli.training.trainee import Sizes, Trainee
from tests.conftest import NO_TORCH, ROOT
from tests.data.test_encoded import photo

NAMES = ["Augment", "Config", "DynamicSubset", "EfficientDataset", "Matching", "RelaError", "Table", "TrainedRun",
         "Whitening", "__version__", "compose", "extract", "load_backbone", "open", "probe", "run", "table",
         "train"]  # fmt: skip
MODULES = ("augment", "efficient", "features", "maps", "matching", "runs", "subset")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `efficient`, the digits by 64 patches, images and all, and the outputs behind it."""
    folder = tmp_path_factory.mktemp("api")
    words = ("prior=patches", "prior.patches=8", "prior.pool=2", "transport.max_dim=64", "runtime=cpu")
    made = ("convert", *words, "--to", str(folder / "efficient"), "--images", "copy", "--shard-mb", "1")
    assert cli.main([*made, f"--outputs={folder / 'outputs'}"]) == 0
    return folder


@pytest.fixture
def data(place: Path) -> rela.EfficientDataset:
    return rela.open(place / "efficient")


# ------------------------------------------------------------------------------------------------------------ the names


def test_the_names_stay() -> None:
    assert sorted(rela.__all__) == NAMES
    stub = (ROOT / "rela_cli" / "__init__.pyi").read_text()
    assert sorted(re.findall(r'^    "(\w+)",$', stub, flags=re.MULTILINE)) == NAMES
    assert all(hasattr(rela, name) for name in NAMES)
    assert (ROOT / "rela_cli" / "py.typed").exists()


OUTSIDE = """
import torch
import rela_cli as rela

data = rela.open("efficient")
learner: torch.nn.Module = torch.nn.Flatten()
sampler = rela.DynamicSubset(len(data), budget=0.5, seed=0)
views, matching = rela.Augment(data, seed=0), rela.Matching(learner, data)
loader = torch.utils.data.DataLoader(data.images(), batch_size=4, sampler=sampler)
for images, numbers in loader:
    loss: torch.Tensor = matching.loss([learner(view) for view in views(images, numbers, sampler.epoch)], numbers)
done: bool = matching.done
features: torch.Tensor = rela.extract(learner, torch.zeros(4, 3, 8, 8))
targets: torch.Tensor = rela.Whitening.fit(features)(features)
top1: float = rela.probe(features, torch.zeros(4, dtype=torch.int64))["top1"]
run: rela.TrainedRun = rela.train(["budget=0.5"])
rows: list[dict[str, object]] = [*rela.table("outputs")]
wrong: str = data.width
wrong_too: int = rela.extract(learner, torch.zeros(4, 3, 8, 8))
"""


INTERNALS = ("_decomp", "_dynamo", "_export", "_functorch", "_higher_order_ops", "_inductor", "_prims", "_refs",
             "_subclasses", "ao", "distributed", "export", "fx", "onnx", "testing")  # fmt: skip


def test_mypy_strict_sees_the_types_from_outside(tmp_path: Path) -> None:
    """A user's file: of it, and nothing else, mypy says what is wrong. Tensors and modules are torch's own types.

    What nobody passes to us is not read: torch's compiler and the like, two thirds of the time.
    """
    api = pytest.importorskip("mypy.api")
    (tmp_path / "mine.py").write_text(OUTSIDE)
    unread = ",".join([*(f"torch.{name}.*" for name in INTERNALS), "numpy.*", "sympy.*"])
    settings = f"[mypy]\nstrict = true\nfollow_imports = silent\n[mypy-{unread}]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(settings)
    cache = f"--cache-dir={ROOT / '.mypy_cache' / 'outside'}"  # other options than those of `make types`
    said, _, status = api.run([f"--config-file={tmp_path / 'mypy.ini'}", cache, str(tmp_path / "mine.py")])
    assert re.findall(r"error: .*", said) == [
        'error: Incompatible types in assignment (expression has type "int", variable has type "str")  [assignment]',
        'error: Incompatible types in assignment (expression has type "Tensor", variable has type "int")  [assignment]',
    ]
    assert status == 1


def test_importing_it_imports_neither_torch_nor_hydra() -> None:
    code = f"{NO_TORCH}\nimport sys, rela_cli; print({{'hydra', 'numpy', 'yaml'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_the_examples(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    module = import_module(f"rela_cli.api.{name}")
    known = {"torch": torch, "open_folder": rela.open}
    found = doctest.testmod(module, extraglobs=known, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


def test_every_public_name_has_an_example() -> None:
    for name in MODULES:
        module = import_module(f"rela_cli.api.{name}")
        for own in (value for key, value in vars(module).items() if key in NAMES or key == "open_folder"):
            if own.__module__ == module.__name__ and name not in ("runs",):
                texts = [own.__doc__ or "", *(str(getattr(v, "__doc__", "")) for v in vars(own).values())]
                assert any(">>>" in text for text in texts), own


# --------------------------------------------------------------------------------------------------- efficient datasets


def test_targets_by_number_and_by_path(tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / "photos" / "train" / "ab"[i % 2] / f"{i:02d}.jpg", i)
    words = ["dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "dataset.image_size=8", "prior=random",
             "prior.width=4", "transport.max_dim=6", "batch_size=4", "runtime=cpu"]  # fmt: skip
    assert cli.main(["convert", *words, "--to", str(tmp_path / "eff"), f"--outputs={tmp_path}"]) == 0
    data = rela.open(tmp_path / "eff")
    wanted = load_file(Run(compose([*words, f"paths.outputs={tmp_path}"])).targets.folder / "train.safetensors")
    assert torch.equal(data[:], wanted["targets"].float())
    assert data.names[3] == "train/a/06.jpg"
    assert torch.equal(data["train/a/06.jpg"], data[3])
    assert torch.equal(data[["train/a/06.jpg", "train/a/00.jpg"]], data[[3, 0]])
    assert torch.equal(data.to("cpu")[torch.tensor([5, 1])], data[[5, 1]])
    assert data.images()[3][0].shape == (3, 8, 8)
    with pytest.raises(KeyError, match=r"cat\.jpg is no sample of train in .*such as train/a/00\.jpg"):
        data["cat.jpg"]
    with pytest.raises(IndexError, match="sample 12 of 12: numbers go from 0 to 11"):
        data[[12]]
    with pytest.raises(rela.RelaError, match=r"has no tset"):
        rela.open(tmp_path / "eff", split="tset")
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(rela.RelaError):
        data = rela.open(tmp_path / "eff")
        data.images()


def test_new_features_map_into_the_same_space(data: rela.EfficientDataset, place: Path) -> None:
    words = ["prior=patches", "prior.patches=8", "prior.pool=2", "transport.max_dim=64", "runtime=cpu"]
    run = Run(compose([*words, f"paths.outputs={place / 'outputs'}"]))
    features = load_file(run.features.folder / "test.safetensors")["features"]
    test = rela.open(place / "efficient", split="test")
    assert (data.transport(features) - test[:]).abs().max() < 5e-3  # fp16
    fitted = rela.Whitening.fit(load_file(run.features.folder / "train.safetensors")["features"], max_dim=64)
    assert torch.allclose(fitted(features), data.transport(features), atol=1e-4)
    fitted.save(place / "map.safetensors")
    assert torch.equal(rela.Whitening.load(place / "map.safetensors")(features), fitted(features))


def test_a_flipped_byte_is_found(data: rela.EfficientDataset, tmp_path: Path) -> None:
    from tests.promises.helpers import flip

    assert data.verify() == []
    folder = Path(shutil.copytree(data.folder, tmp_path / "eff"))
    flip(folder / "test-00000-of-00001.safetensors")
    assert len(rela.open(folder).verify()) == 1


# ------------------------------------------------------------------------------------------------------ dynamic subset


def test_it_draws_what_rela_train_draws() -> None:
    run = lengths(compose(["batch_size=8", "budget=0.3", "epochs=2"]), 100)
    sampler = rela.DynamicSubset(100, budget=0.3, seed=5)
    for epoch in range(2):
        ours = [batch.tolist() for batch in batches(5, epoch, run, 8)]
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == 30
        assert [drawn[i : i + 8] for i in range(0, 24, 8)] == ours
    assert sampler.epoch == 1


def test_ranks_share_an_epoch_and_restarts_go_on() -> None:
    whole = list(rela.DynamicSubset(101, budget=0.5, seed=1))
    parts = [list(rela.DynamicSubset(101, budget=0.5, seed=1, rank=rank, world=3)) for rank in range(3)]
    assert {len(part) for part in parts} == {16}
    assert [parts[i % 3][i // 3] for i in range(48)] == whole[:48]
    first = rela.DynamicSubset(101, budget=0.5, seed=1)
    first.set_epoch(4)
    other = rela.DynamicSubset(101, budget=0.5, seed=1)
    other.load_state_dict(first.state_dict(seen=10))
    assert list(other) == list(first)[10:]
    assert list(other) == list(first)
    with pytest.raises(ValueError, match="another subset: seed 1, here 0"):
        rela.DynamicSubset(101, budget=0.5).load_state_dict(first.state_dict())
    for budget in (0, 1.5):
        with pytest.raises(ValueError, match=f"budget={budget} must be above 0 and at most 1"):
            rela.DynamicSubset(10, budget=budget)


# ------------------------------------------------------------------------------------------------------------- matching


def test_the_loss_is_one_minus_cosine_of_the_first_components(data: rela.EfficientDataset) -> None:
    matching = rela.Matching(16, data, switch="never")
    features, rows = torch.randn(5, 16, dtype=torch.float64), [4, 0, 9, 30, 2]
    matching.double()
    mapped = features @ matching.layer.transfer.weight.T + matching.layer.transfer.bias
    wanted = 1 - torch.cosine_similarity(mapped, data[rows][:, :16].double(), dim=1).mean()
    assert torch.isclose(matching.loss(features, rows), wanted)
    assert torch.isclose(matching.loss([features, features], torch.tensor(rows)), wanted)
    assert not matching.done


def test_the_switch_is_that_of_rela_train() -> None:
    """Losses go in, and it leaves at the step at which the trainer's own switch leaves."""
    from rela_cli.switch import Adaptive

    targets, torch_rows = torch.eye(8), torch.arange(8)
    matching = rela.Matching(8, targets, switch="adaptive", total_steps=60, threshold=0.9)
    ours = Adaptive("share", 0.9, 60, torch.device("cpu"))
    left = None
    for step in range(60):
        ours.check()
        assert matching.done == matching.done == ours.should_leave()
        if matching.done:
            left = step
            break
        noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(step)) / (1 + step)
        ours.observe(matching.loss(targets + noise, torch_rows).detach())
        matching.load_state_dict(matching.state_dict())
    assert left == 4


class Small(torch.nn.Module):
    """Stands for torchvision's ResNet-18: the same names, eight features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.fc(self.maxpool(self.conv1(images)).mean((2, 3)))
        return features


def seeded() -> torch.nn.Module:
    """What the page calls resnet18()."""
    torch.manual_seed(0)
    return Small()


def fresh() -> torch.nn.Module:
    """The learner of the page's first block before it is trained."""
    learner = seeded()
    learner.conv1 = torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False)
    learner.maxpool, learner.fc = torch.nn.Identity(), torch.nn.Identity()
    return learner


def test_the_loops_of_the_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of docs/api.md, shorter, with a smaller network; Lightning and accelerate give the loop's weights."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(place)
    monkeypatch.setattr("torchvision.models.resnet18", seeded)
    small = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 8))
    monkeypatch.setattr("timm.create_model", lambda name, num_classes: small)
    names: dict[str, Any] = {}
    trained = []
    for block in blocks:
        wanted = next((name for name in ("pytorch_lightning", "accelerate") if name in block), "torch")
        if find_spec(wanted):
            names["learner"] = fresh() if wanted != "torch" else names.get("learner")
            exec(block.replace("epochs, data = 20", "epochs, data = 1").replace("3, 64, 3", "3, 8, 3"), names)
            trained += [names["learner"].state_dict()] if wanted != "torch" or block == blocks[0] else []
    for other in trained[1:]:
        torch.testing.assert_close(other, trained[0], rtol=1e-5, atol=1e-7)
    assert not torch.equal(trained[0]["conv1.weight"], fresh().state_dict()["conv1.weight"])
    assert len(trained) == 1 + sum(find_spec(name) is not None for name in ("pytorch_lightning", "accelerate"))
    assert 0 < names["loss"].item() < 1.1 and len(small[2].weight.grad) == 8


def test_a_loop_gives_the_weights_of_rela_train(place: Path, data: rela.EfficientDataset) -> None:
    """From the same initial weights: samples, views, loss and steps are the same, so nothing is missing in the API."""
    words = ["dataset=efficient", f"dataset.root={place / 'efficient'}", "learner.width=4", "epochs=2", "budget=0.25",
             "batch_size=32", "switch=never", "runtime=cpu", "runtime.threads=1", "probe.protocols=[knn]",
             "runtime.eval_every_epochs=0", "seed=3"]  # fmt: skip
    config = compose(words)
    trainee = Trainee(config, Sizes(data.image_size, 32, 10)).to(memory_format=torch.channels_last)
    learner = trainee.method.backbone.train()
    matching = rela.Matching(learner, data, switch="never")
    assert trainee.matching is not None
    matching.layer.load_state_dict(trainee.matching.state_dict())
    views, sampler = rela.Augment(data, seed=3), rela.DynamicSubset(len(data), budget=0.25, seed=3)
    loader = torch.utils.data.DataLoader(data.images(), batch_size=32, sampler=sampler, drop_last=True)
    optimizer = torch.optim.AdamW([*learner.parameters(), *matching.parameters()], lr=1e-3, fused=True)
    for _ in range(2):
        for images, numbers in loader:
            loss = matching.loss([learner(view) for view in views(images, numbers, sampler.epoch)], numbers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    run = rela.train([*words, f"paths.outputs={place / 'outputs'}"])
    for name, weight in run.backbone().state_dict().items():
        torch.testing.assert_close(learner.state_dict()[name], weight, rtol=1e-3, atol=1e-5, msg=name)


def test_a_loop_on_cached_views_gives_the_weights_of_rela_train(tmp_path: Path) -> None:
    """Each view is cut where the prior saw it, and matched to its own target; the mirror is not forgotten."""
    words = ["dataset=fake", "dataset.n=64", "dataset.size=16", "prior=random", "prior.width=4", "extract.views=3"]
    made = ["convert", *words, "runtime=cpu", "batch_size=16", "--to", str(tmp_path / "eff"), "--images", "copy"]
    assert cli.main([*made, f"--outputs={tmp_path / 'outputs'}"]) == 0
    words = ["dataset=efficient", f"dataset.root={tmp_path / 'eff'}", "learner.width=4", "epochs=2", "budget=0.5",
             "batch_size=16", "switch=never", "runtime=cpu", "runtime.threads=1", "probe.protocols=[knn]",
             "probe.knn_k=5", "runtime.eval_every_epochs=0", "seed=3", "extract.views=3"]  # fmt: skip
    data = rela.open(tmp_path / "eff")
    assert data.views == 3 and data.boxes.shape == (64, 3, 5)
    trainee = Trainee(compose(words), Sizes(data.image_size, 32, 10)).to(memory_format=torch.channels_last)
    learner = trainee.method.backbone.train()
    matching = rela.Matching(learner, data, switch="never", seed=3, cached=True)
    assert trainee.matching is not None
    matching.layer.load_state_dict(trainee.matching.state_dict())
    views, sampler = rela.Augment(data, seed=3, cached=True), rela.DynamicSubset(len(data), budget=0.5, seed=3)
    loader = torch.utils.data.DataLoader(data.images(), batch_size=16, sampler=sampler, drop_last=True)
    optimizer = torch.optim.AdamW([*learner.parameters(), *matching.parameters()], lr=1e-3, fused=True)
    for _ in range(2):
        for images, numbers in loader:
            epoch = sampler.epoch
            loss = matching.loss([learner(view) for view in views(images, numbers, epoch)], numbers, epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    run = rela.train([*words, f"paths.outputs={tmp_path / 'outputs'}"])
    for name, weight in run.backbone().state_dict().items():
        torch.testing.assert_close(learner.state_dict()[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match=r"say loss\(features, indices, epoch\)"):
        matching.loss(torch.zeros(2, 32), [0, 1])
    with pytest.raises(rela.RelaError, match="holds no light views of test"):
        rela.Augment(rela.open(tmp_path / "eff", split="test"), cached=True)


def test_views_are_those_of_the_trainer(data: rela.EfficientDataset) -> None:
    views = rela.Augment(data, seed=7, crop_scale=(0.9, 1.0))
    images = torch.stack([data.images()[i][0] for i in range(6)])
    rows = torch.arange(6)
    whole, part = views(images, rows, 2), views(images[4:], [4, 5], 2)
    assert all(torch.equal(one[4:], other) for one, other in zip(whole, part, strict=True))
    assert not torch.equal(whole[0], views(images, rows, 3)[0])
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\) with B numbers; these are float32 \(6"):
        views(images.float(), rows, 0)
    with pytest.raises(ValueError, match="a view has no setting crop; it has crop_scale, "):
        rela.Augment(data, crop=0.5)
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        rela.Augment(data, count=0)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"switch": "always"}, "switch='always' must be one of adaptive, fixed, never"),
        ({"switch": "fixed"}, "switch='fixed' needs total_steps="),
        ({"at": 0.5}, "switch='adaptive' has no setting at"),
        ({"cached": True}, "cached=True needs an efficient dataset with light views"),
        ({"transfer": "thawed"}, "transfer='thawed' must be trained or frozen"),
    ],
)
def test_a_matching_that_cannot_be_meant(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        rela.Matching(8, torch.eye(8), **settings)


def test_the_learners_width_is_measured(data: rela.EfficientDataset) -> None:
    learner = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).train()
    assert rela.Matching(learner, data).columns == 6
    assert learner.training
    with pytest.raises(ValueError, match="say how wide the network's features are"):
        rela.Matching(learner, torch.eye(3))


# ----------------------------------------------------------------------------------------------- features, runs, tables


def test_the_probe_is_that_of_rela_train(place: Path) -> None:
    """The prior alone, from the folder, as the run's result.json has it."""
    run = rela.train(["dataset=efficient", f"dataset.root={place / 'efficient'}", "learner.width=4", "epochs=1",
                      "runtime=cpu", "probe.protocols=[lbfgs]", f"paths.outputs={place / 'outputs'}"])  # fmt: skip
    train, test = rela.open(place / "efficient"), rela.open(place / "efficient", split="test")
    width = run.result["target_dim"]
    assert train.labels is not None and test.labels is not None
    found = rela.probe(train[:][:, :width], train.labels, test=(test[:][:, :width], test.labels))
    assert found["top1"] == run.result["baselines"]["prior_alone"]["lbfgs"]["top1"]
    rows = rela.table(place / "outputs")
    row = next(row for row in rows if row["run"] == str(run.folder.resolve()))
    assert (row["top1"], row["protocol"], row["prior"]) == (run.numbers["lbfgs"], "lbfgs", "patches")
    assert run.backbone()(torch.zeros(1, 3, 8, 8)).shape == (1, run.result["feature_dim"])
    if find_spec("pandas"):
        assert list(rows.to_pandas()["top1"]) == [row["top1"] for row in rows]


def test_features_in_batches_and_at_once(data: rela.EfficientDataset) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5), torch.nn.Dropout(0.5)).train()
    shown = data.images()
    images = torch.stack([shown[i][0] for i in range(50)]).float()
    at_once = rela.extract(model, images, batch_size=16)
    loader = torch.utils.data.DataLoader(data.images(lambda image: image.float()), batch_size=10)
    batched = rela.extract(model, loader)
    assert torch.allclose(at_once, batched[:50], atol=1e-4)
    assert len(batched) == len(data) and model.training
    with pytest.raises(ValueError, match="not one vector: pool or flatten it"):
        rela.extract(torch.nn.Conv2d(3, 2, 3), images)
    with pytest.raises(ValueError, match="NaN or Inf for image 7"):
        images[7] = float("nan")
        rela.extract(model, images)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"protocol": "svm"}, "protocol='svm' must be one of rela, lbfgs"),
        ({"k": 3}, "protocol='lbfgs' has no setting k; it has penalty, tolerance"),
        ({"labels": torch.zeros(3)}, "must be (N, D) and (N,)"),
    ],
)
def test_a_probe_that_cannot_be_meant(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wanted)):
        rela.probe(**{"features": torch.randn(40, 4), "labels": torch.arange(40) % 2, **settings})
