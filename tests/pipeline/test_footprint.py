"""What memory a run will take: counted beforehand, measured afterwards, and refused where it is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rela_cli.commands import plan
from rela_cli.config.compose import compose
from rela_cli.errors import RelaError
from rela_cli.machine import memory
from rela_cli.machine.device import count_flops
from rela_cli.pipeline import enough_memory, pipeline
from rela_cli.pipeline.counting import count_work, counted_for
from rela_cli.pipeline.footprint import Footprint, Outlook, Shape, of_run
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.terms import DEVICE, HOST, MAPPED, Taken
from rela_cli.training.trainee import Sizes, Trainee
from rela_cli.transports.pca import Whitening
from tests import warm

SMALL = ("learner.width=4", "batch_size=32", "epochs=1", "budget=0.1", "runtime.threads=1")
GB = 10**9


def rela(*words: str) -> subprocess.CompletedProcess[str]:
    return warm.run(Path.cwd(), *words, env=os.environ)


# -------------------------------------------------------------------------------------------------- what is free


def root(folder: Path, files: dict[str, str]) -> Path:
    """A machine's /proc and /sys."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    2000 kB\nSwapFree:  500 kB\n"}


def test_what_is_available_and_swap_are_free(tmp_path: Path) -> None:
    assert memory.free(root(tmp_path, MEMINFO)) == 2500 * 1024


def test_a_cgroup_above_leaves_less(tmp_path: Path) -> None:
    """Version 2: the limit stands two folders up; of what is used, files that can go do not count."""
    group = "sys/fs/cgroup/jobs"
    files = {"proc/self/cgroup": "0::/jobs/42/task\n", f"{group}/memory.max": "1000000\n"}
    files |= {f"{group}/memory.current": "700000\n", f"{group}/memory.stat": "anon 5\ninactive_file 200000\n"}
    files |= {f"{group}/42/memory.max": "max\n"}
    assert memory.free(root(tmp_path, MEMINFO | files)) == 500_000


def test_a_cgroup_of_version_1_leaves_less(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/slurm"
    files = {"proc/self/cgroup": "9:cpu:/slurm\n4:memory:/slurm\n", f"{group}/memory.limit_in_bytes": "800000\n"}
    files |= {f"{group}/memory.usage_in_bytes": "900000\n", f"{group}/memory.stat": "total_inactive_file 300000\n"}
    files |= {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert memory.free(root(tmp_path, MEMINFO | files)) == 200_000


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert memory.free(tmp_path) is None


# ----------------------------------------------------------------------------------------------------- what is counted


def real_step(config_words: list[str], images: int, size: int) -> tuple[float, int]:
    """Peak and FLOPs of the method's own step, with numbers."""
    config = compose([*config_words, f"batch_size={images}", "prior=none"])
    of = Footprint(config, Shape(64, 16, size, size, False, 10))
    trainee = of.trainee()
    taken = count_work(lambda: of.take_step(trainee, images, "cpu", 2), trainee)
    return taken.peak, round(taken.flops)


@pytest.mark.parametrize("method", ["byol", "dino", "simclr", "swav", "supervised"])
def test_a_step_without_numbers_takes_what_a_real_one_does(method: str) -> None:
    """Memory to 1 % (the bytes of a mask's entries are the most that they can be), FLOPs to the last one."""
    words = [f"method={method}", "learner.width=4"]
    config = compose([*words, "batch_size=8", "prior=none"])
    found = Footprint(config, Shape(64, 16, 16, 16, False, 10)).step(2)
    peak, flops = real_step(words, 8, 16)
    assert found.peak == pytest.approx(peak, rel=0.01)
    assert found.flops == flops


def test_flops_are_those_that_a_run_counts() -> None:
    config = compose(["learner.width=4", "batch_size=8", "prior=none"])
    trainee = Trainee(config, Sizes(16, None, 10))
    views = [torch.randn(8, 3, 16, 16) for _ in trainee.method.views]
    real = count_flops(lambda: trainee(views, None, None).backward())
    assert Footprint(config, Shape(64, 16, 16, 16, False, 10)).step(2).flops == pytest.approx(real, rel=0.02)


def test_a_network_that_needs_numbers_is_counted_by_two_small_passes() -> None:
    class Picky(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if float(x.sum()) >= 0 else -x)

    def work(network: nn.Module, n: int, device: str) -> None:
        network(torch.ones(n, 1000, device=device)).sum().backward()

    picky, plain = (counted_for(1000, work, lambda kind=kind: kind(1000, 2)) for kind in (Picky, nn.Linear))
    assert picky.peak == pytest.approx(plain.peak, rel=0.02)


def test_terms_by_hand(tmp_path: Path) -> None:
    """Weights, optimizer, running average, images and targets of a run, to the byte."""
    words = [
        "method=byol",
        "dataset=fake",
        "dataset.n=500",
        "dataset.n_test=100",
        "dataset.size=8",
        f"paths.outputs={tmp_path}",
    ]
    of = of_run(Run(compose([*words, *SMALL])))
    trainee = Trainee(of.config, Sizes(8, 32, 10))  # 8 * 4 features, of 2048 components
    trained = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
    average = sum(t.nbytes for a in trainee.averages() for t in (*a.parameters(), *a.buffers()))
    terms = {term.name: term for term in of.train().terms}
    assert terms["optimizer"].size == 8 * trained
    assert terms["running average"].size == average > 0
    assert (terms["images"].size, terms["images"].place) == (500 * 3 * 64, MAPPED)
    assert terms["targets"].size == 2 * 500 * 2048
    assert of.extract().total(HOST, DEVICE) >= 2 * 256 * 256 * 9 * 4  # two sides of 256 images' responses


@pytest.mark.parametrize(("dims", "matched", "kept"), [("learner", 32, 2048), ("twice", 64, 2048), ("48", 48, 48)])
def test_targets_are_as_wide_as_dims_says(dims: str, matched: int, kept: int, tmp_path: Path) -> None:
    words = ["dataset=fake", f"transport.dims={dims}", f"paths.outputs={tmp_path}"]
    of = of_run(Run(compose([*words, *SMALL])))
    assert (of.matched, of.targets) == (matched, kept)


@pytest.mark.parametrize(
    ("every", "named"), [(5, "a block of 256 images"), (0, "activations and gradients of 2 images")]
)
def test_a_glance_while_it_trains_may_take_more_than_a_step(every: int, named: str, tmp_path: Path) -> None:
    small = [word for word in SMALL if not word.startswith("batch_size")]
    words = ["dataset=fake", "dataset.size=16", "batch_size=2", f"runtime.eval_every_epochs={every}"]
    of = of_run(Run(compose([*words, *small, f"paths.outputs={tmp_path}"])))
    sizes = {term.name: term.size for term in of.train().terms}
    assert named in sizes
    if every:
        assert sizes[named] == next(term.size for term in of.probe().terms if term.name == named) > of.step(2).peak


@pytest.mark.parametrize(("rows", "width"), [(8192, 256), (300, 512)])
def test_a_transport_takes_its_blocks_or_its_eigenvectors(rows: int, width: int, tmp_path: Path) -> None:
    """Not both at a time: the plan is about what its tensors are, and less than a third above that."""
    config = compose(["dataset=fake", "dataset.size=8", f"paths.outputs={tmp_path}", *SMALL])
    of = Footprint(config, Shape(rows, 10, 8, 8, False, 2))
    of.__dict__["outlook"] = Outlook(width, 0, Taken(0, 0), Taken(0, 0))
    planned = of.transport().total(HOST)
    blocks = iter([torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).half()])
    held = count_work(lambda: Whitening(2048).fit(block.clone() for block in blocks), nn.Identity()).peak
    assert held <= planned * 1.1
    assert planned < 1.33 * held


# ------------------------------------------------------------------------------------------------ what is measured


@pytest.mark.slow
def test_a_run_takes_what_its_plan_says(tmp_path: Path) -> None:
    """Each in a process of its own; docs/scaling.md has three other sizes."""
    words = (
        "dataset=fake",
        "dataset.n=600",
        "dataset.n_test=100",
        "dataset.size=32",
        "learner.width=16",
        "batch_size=128",
    )
    words += (
        "epochs=1",
        "probe.protocols=[knn]",
        "probe.baselines=false",
        "runtime.threads=1",
        f"paths.outputs={tmp_path}",
    )
    plan = rela("plan", "train_rate=1", "prior_rate=1", *words)
    assert plan.returncode == 0, plan.stderr
    lines = re.findall(r"^    (\w+) +([\d.]+) ([kMG])B:", plan.stdout, re.MULTILINE)
    sizes = {name: float(size) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit] for name, size, unit in lines}
    assert set(sizes) == {"images", "extract", "transport", "train", "probe"}
    done = rela("train", *words)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("runs/*-*/result.json")
    peak = json.loads(result.read_text())["peak_memory_bytes"]
    assert max(sizes[name] for name in ("images", "extract", "transport", "train")) == pytest.approx(peak, rel=0.3)


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_run_without_room_is_refused_before_it_has_a_folder(tmp_path: Path) -> None:
    done = rela(
        "train", "dataset=fake", "dataset.n=200000", "dataset.size=96", "batch_size=150000", f"paths.outputs={tmp_path}"
    )
    assert done.returncode == 1
    assert re.search(r"stage train needs \d+\.\d GB of memory and \d+\.\d [MG]B are free", done.stderr), done.stderr
    assert "activations and gradients of 150000 images" in done.stderr and "Traceback" not in done.stderr
    assert re.search(r"ways out: batch_size=\d+; accumulate=\d+", done.stderr)
    assert not list(tmp_path.glob("runs/*/manifest.json"))


def needs(tmp_path: Path, *words: str) -> Run:
    fake = ("dataset=fake", "dataset.n=600", "dataset.n_test=100", "dataset.size=32", f"paths.outputs={tmp_path}")
    return Run(compose([*fake, *SMALL, *words]))


def test_what_has_room_is_not_even_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 100 * GB)
    monkeypatch.setattr(enough_memory, "of_run", lambda run: pytest.fail("it was counted"))
    enough_memory.check(needs(tmp_path))


def test_what_may_not_have_room_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors alone would fit; with the heap and first uses of libraries it is too much."""
    run = needs(tmp_path, "prior=none")
    train = of_run(run).train()
    free = round(train.total(HOST, DEVICE) + 30e6)
    monkeypatch.setattr(memory, "free", lambda: free)
    monkeypatch.setattr(enough_memory, "to_make", lambda run, of, until: [of.train()])
    enough_memory.check(run)
    said = capsys.readouterr().err
    assert "stage train needs" in said and "the system may end this run. Ways out: batch_size=" in said


def test_extraction_without_room_names_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 100_000_000)  # 400 MB for 256 images of 32 px and 256 patches
    with pytest.raises(RelaError, match=r"stage extract needs .*\n.*256 images.*\n.*runtime.block_size=32"):
        enough_memory.check(needs(tmp_path))


@pytest.mark.parametrize("until", ["extract", "transport"])
def test_targets_alone_are_refused_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: str) -> None:
    """`rela extract` and `rela transport` ask as `rela train` does, and build no learner for it."""
    monkeypatch.setattr(memory, "free", lambda: 100_000_000)
    monkeypatch.setattr(Footprint, "train", lambda self: pytest.fail("the learner was counted"))
    with pytest.raises(RelaError, match=r"stage extract needs "):
        pipeline.run(needs(tmp_path).config, until)
    assert not list(tmp_path.glob("cache/features/*"))


def test_a_new_probe_without_room_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that is trained, where no learner is tried out first."""
    words = ("prior=none", "probe.protocols=[knn]")
    pipeline.run(needs(tmp_path, *words).config)
    monkeypatch.setattr(memory, "free", lambda: 1_000_000)
    pipeline.run(needs(tmp_path, *words, "probe.protocols=[knn,lbfgs]").config)
    assert "stage probe needs" in capsys.readouterr().err


def test_a_probe_without_room_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The backbone is there before it starts; so training is not refused for it."""
    run = needs(tmp_path, "prior=none", "dataset.n=200000")
    monkeypatch.setattr(memory, "free", lambda: 300_000_000)  # 200,100 x 32 features x 4 bytes x 3, and 820 MB for knn
    monkeypatch.setattr(enough_memory, "to_make", lambda run, of, until: [of.probe()])
    enough_memory.check(run)
    assert "stage probe needs" in capsys.readouterr().err


def test_a_trial_without_room_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 100_000)
    with pytest.raises(RelaError, match="train_rate= and prior_rate="):
        plan.main(["samples=1e4", "size=32", "prior_rate=10", *SMALL])


def test_the_memory_of_the_process_that_started_this_one_does_not_count() -> None:
    """As from a notebook: Linux's ru_maxrss lives on when a process starts another program."""
    ballast = b"x" * (1 << 29)
    code = "import resource; from rela_cli.machine import memory; print(memory.peak())\n"
    code += "print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own, inherited = map(int, done.stdout.split())
    assert inherited > len(ballast) > 10 * own > 0
