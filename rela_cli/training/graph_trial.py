"""Whether steps are taken by a CUDA graph where the user leaves it open (runtime.step=auto): a trial says so.

A driver may fail for good while it records, and then the process has no GPU to go on with. So a process of its own
trains a tiny network first, by graphs, through every kind of step of the method. Whatever happens there costs the run
some seconds. What came of it is kept by GPU, driver, torch and method in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
from filelock import Timeout

from rela_cli import __version__
from rela_cli.config.compose import compose
from rela_cli.config.lengths import lengths
from rela_cli.config.reading import from_tree, to_tree
from rela_cli.config.schema import Config, Part
from rela_cli.data.batches.cache import ImageStats, Split
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError, is_full
from rela_cli.machine.device import pick_device
from rela_cli.machine.memory import free_unused
from rela_cli.store.files import Facts, fingerprint, read_json, write_json
from rela_cli.store.locks import Lock
from rela_cli.store.notices import warn
from rela_cli.training.goals import Goals
from rela_cli.training.graph import GraphedStep, by_cuda_graph, hindrance, is_ours
from rela_cli.training.logs import Metrics
from rela_cli.training.trainer import Trainer

MODULE = "rela_cli.training.graph_trial"
LIMIT = 120.0  # seconds of a trial
WORDS = (  # of the run on trial: 12 steps a phase
    *("dataset=fake", "learner=resnet18", "learner.stem=cifar", "learner.width=8", "switch=fixed", "switch.at=0.5"),
    *("epochs=8", "batch_size=16", "runtime.read_every_steps=1", "runtime.eval_every_epochs=0", "runtime.step=eager"),
)
BRANCHES = {"frozen_prototypes": 0.75}  # options of a method: so that phase 2 has steps of either branch
IMAGES, SIDE, WIDTH, CLASSES = 48, 32, 16, 4  # how many, their pixels a side, the width of their targets
BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what ends a process from outside
BUSY = "busy or unavailable"  # how a GPU shows that another process has for itself
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", ranks.MEETING)


def with_step(config: Config) -> Config:
    """The config with `graph` or `eager` for runtime.step=auto. Of a GPU one line says why it is `eager`."""
    if config.runtime.step != "auto":
        return config
    why = reason_against(config)
    if why and on_gpu(config) and ranks.is_first():
        warn(f"runtime.step=auto: steps are taken operator by operator, not as one CUDA graph: {why}")
    return replace(config, runtime=replace(config.runtime, step="eager" if why else "graph"))


def reason_against(config: Config, again: bool = False) -> str:
    """Why steps are not taken by a CUDA graph; empty where they are. `again`: a trial that went badly is repeated."""
    if why := hindrance(config, pick_device(config.runtime)):
        return why
    by_hand = "runtime.step=graph asks for it all the same"
    if not is_ours(config.learner):
        return f"learner={config.learner.name} is not rela's own, and may read on the host. {by_hand}"
    why = verdict(config.method, path_of(config.method), again)
    return f"{why}. `rela doctor --gpu method={config.method.name}` tries again; {by_hand}" if why else ""


def on_gpu(config: Config) -> bool:
    """Whether a run computes on one."""
    return pick_device(config.runtime).type == "cuda"


# ----------------------------------------------------------------------------------------------------- what is kept


def path_of(method: Part) -> Path:
    """The file that keeps what came of the trial of a method on this GPU."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "rela", "cuda_graphs", f"{method.name}-{fingerprint(key_of(method))}.json")


def key_of(method: Part) -> Facts:
    """What a verdict holds for."""
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    machine = {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "driver": driver()}
    return {**machine, "torch": torch.__version__, "rela": __version__, "method": method.name, "class": method.target}


def driver() -> str:
    """The version of the GPU's driver, as its kernel module says it; empty where it does not."""
    with suppress(OSError, IndexError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return ""


def kept_in(path: Path, again: bool) -> str | None:
    """Why a graph was not to be taken, empty where it was; None: that is not known, or was bad and is tried `again`."""
    found = (read_json(path) or {}).get("why")
    return found if isinstance(found, str) and not (found and again) else None


def verdict(method: Part, path: Path, again: bool = False) -> str:
    """Why steps are not to be taken by a graph, empty where they are: what is kept, or what a trial says.

    Of several processes one tries, and the others wait for it. `again`: what is kept counts only where it is good.
    """
    if (found := kept_in(path, again)) is not None:
        return shown(found, path)
    with one_at_a_time(path):
        if (found := kept_in(path, again)) is not None:
            return shown(found, path)
        free_unused()  # the trial needs some of the GPU
        why, is_lasting = outcome(command(method), LIMIT)
        if is_lasting:
            with suppress(RelaError, OSError):  # then the next run tries again
                write_json(path, {**key_of(method), "why": why})
        return shown(why, path if is_lasting else None)


def shown(why: str, path: Path | None) -> str:
    """A reason with where it is kept."""
    kept = f" (kept in {path})" if path and path.exists() else ""
    return f"a trial of it in a process of its own says: {why.rstrip('.')}{kept}" if why else ""


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Inside, no other process tries the same; where nothing can be locked, each tries for itself."""
    lock = Lock(path.with_suffix(".lock"), "a trial of CUDA graphs")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(2 * LIMIT)
    except (OSError, RelaError, Timeout):
        yield
        return
    try:
        yield
    finally:
        lock.release()


# -------------------------------------------------------------------------------------------------------- the trial


def command(method: Part) -> list[str]:
    """The process that tries a method."""
    return [sys.executable, "-m", MODULE, json.dumps(to_tree(trial_config(method)))]


def outcome(words: Sequence[str], limit: float) -> tuple[str, bool]:
    """Why a process that tries advises against a graph, empty where it does not; and whether that is worth keeping.

    A GPU that is full, or an end by another's hand, says nothing of graphs.
    """
    own = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=errors, env=own)
        except OSError as error:
            return f"it cannot be started ({error})", False
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"it was not done after {limit:g} s", True
        finally:
            end(process)
        if status < 0:
            return f"signal {-status} ended it ({signal.strsignal(-status)})", -status not in BY_OTHERS
        why = answer(last_line(said)) if status == 0 else f"exit status {status}: {last_line(errors)}"
    return why, not is_full(why) and BUSY not in why


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind; one that not even the system can end is left alone."""
    if process.poll() is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def last_line(file: IO[str]) -> str:
    """The last line that a process has written."""
    file.seek(0)
    lines = [line.strip() for line in file if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def answer(line: str) -> str:
    """What the trial has found."""
    try:
        return str(json.loads(line)["why"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {line}"


def main(config: Config) -> None:
    """In a process of its own: train by graphs, and print what came of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(int(LIMIT) + 10)  # where nobody is left to end it
    print(json.dumps({"why": tried(config)}))


def trial_config(method: Part) -> Config:
    """A tiny run of a method."""
    options = {**method.options, **{key: value for key, value in BRANCHES.items() if key in method.options}}
    return replace(compose([*WORDS]), method=replace(method, options=options))


def tried(
    config: Config, graphed: Callable[[Trainer], GraphedStep] = lambda loop: GraphedStep(loop, by_cuda_graph)
) -> str:
    """Train by graphs; why that is not to be done, empty where every kind of step was recorded and did the same."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    targets, grey = torch.randn(IMAGES, WIDTH, generator=random), torch.full((3,), 0.5)
    data, split = ImageStats(grey, grey / 2, SIDE), Split(images, torch.arange(IMAGES) % CLASSES)
    loop = Trainer(config, lengths(config, IMAGES), split, Goals(targets), data)
    loop.graph = graphed(loop)
    with Metrics(Path(os.devnull), lambda _: None) as metrics:
        loop.fit(metrics)
    is_all = set(loop.graph.warm) == set(loop.graph.matched)  # each kind of step there was
    return loop.graph.why_off or ("" if is_all else "not every kind of step was recorded")


if __name__ == "__main__":
    main(from_tree(json.loads(sys.argv[1])))  # from `command`
