"""Sweeps whose cells run at once: shares of a machine, joblib, submitit's local processes, and Slurm played back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from rela_cli.config.compose import compose
from rela_cli.config.overrides import parse
from rela_cli.launch import owner, sweep
from rela_cli.launch import shares as module
from rela_cli.launch.job import Job
from rela_cli.launch.room import Room
from rela_cli.launch.shares import SHARES, Shares, divide, settings, shares_of_sweep
from rela_cli.launch.sweep import CellTask
from rela_cli.pipeline.pipeline import Outcome
from tests.conftest import ROOT, Rela

JOBLIB, LOCAL = "hydra_joblib_launcher", "hydra_submitit_launcher"
CELLS = ("seed=0,1,2", "budget=0.3,0.5")
FAKE = ("dataset=fake", "learner.width=4", "prior.patches=8", "epochs=2", "batch_size=32", "probe.protocols=[knn]")

# A pipeline that writes down where it runs.
PIPELINE = """
import json, os, sys, time, types
from pathlib import Path
pipeline, table = types.ModuleType("rela_cli.pipeline.pipeline"), types.ModuleType("rela_cli.report.tables.tables")
pipeline.STAGES = ("extract", "transport", "train", "probe")
def run(config, until="probe", command=""):
    folder = Path(config.paths.outputs) / "runs" / f"{config.budget:g}-{config.seed}"
    folder.mkdir(parents=True)
    begun = time.time()
    time.sleep(0.5)
    threads, gpu = os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")
    facts = {"pid": os.getpid(), "cores": sorted(os.sched_getaffinity(0)), "threads": threads, "gpu": gpu}
    (folder / "where.json").write_text(json.dumps({**facts, "begun": begun, "ended": time.time()}))
    return types.SimpleNamespace(status="run", folder=folder)
pipeline.run = run
table.print_table = lambda folders: None
sys.modules["rela_cli.pipeline.pipeline"], sys.modules["rela_cli.report.tables.tables"] = pipeline, table
"""


def plugin(name: str) -> None:
    pytest.importorskip(f"hydra_plugins.{name}")


def where(folder: Path) -> list[dict[str, Any]]:
    """What each cell wrote down."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/runs/*/where.json"))]


def most_at_once(found: list[dict[str, Any]]) -> int:
    return max(sum(one["begun"] <= other["begun"] < one["ended"] for one in found) for other in found)


# -------------------------------------------------------------------------------------------------- the shares


def shares(tmp_path: Path, count: int, gpus: tuple[str, ...] = (), cores: int = 8) -> Shares:
    return Shares(tmp_path, count, gpus, tuple(range(cores)))


@pytest.mark.parametrize(("count", "cores"), [(1, 8), (2, 8), (3, 8), (8, 8), (8, 2), (3, 0)])
def test_cores_are_divided_without_a_rest(tmp_path: Path, count: int, cores: int) -> None:
    divided = [shares(tmp_path, count, cores=cores).of(number) for number in range(count)]
    used = Counter(core for own in divided for core in own)
    assert set(used) == set(range(cores))
    assert all(divided) or not cores
    if count <= cores:
        assert set(used.values()) == {1}, "no core belongs to two"
    sizes = [len(own) for own in divided]
    assert max(sizes) - min(sizes) <= 1


def test_one_at_a_time_chooses_its_threads_as_any_run() -> None:
    one, two = (divide(compose(["runtime=cpu", f"runtime.cells_at_once={n}"]).runtime, Path("x")) for n in (1, 2))
    assert one.count == 1 and one.of(0) == (), "no number of threads is said for it"
    assert two.count == 2 and two.of(0) != ()


def test_gpus_are_dealt_out(tmp_path: Path) -> None:
    dealt = [shares(tmp_path, 5, ("3", "7")).gpu(number) for number in range(5)]
    assert dealt == ["3", "7", "3", "7", "3"]


@pytest.mark.parametrize(
    ("words", "launcher", "gpus", "expected"),
    [
        ([], {"_target_": "x.JoblibLauncher", "n_jobs": 3}, "0,1", (3, ("0", "1"))),
        ([], {"_target_": "x.JoblibLauncher", "n_jobs": -1}, "0,1", (2, ("0", "1"))),
        (["runtime.cells_per_gpu=2"], {"_target_": "x.LocalLauncher"}, "0,1", (4, ("0", "1"))),
        (["runtime.cells_at_once=5"], {"_target_": "x.LocalLauncher"}, "0,1", (5, ("0", "1"))),
        (["runtime.devices=2"], {"_target_": "x.LocalLauncher"}, "0,1,2,5,6", (2, ("0,1", "2,5"))),
        (["runtime=cpu", "runtime.cells_at_once=2"], {"_target_": "x.LocalLauncher"}, "0,1", (2, ())),
        ([], {"_target_": "x.BasicLauncher"}, "0,1", None),
        ([], {"_target_": "x.SlurmLauncher"}, "0,1", None),
    ],
)
def test_how_many_cells_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], launcher: Any, gpus: str, expected: Any
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    found = shares_of_sweep(compose(words), launcher, tmp_path)
    assert (found and (found.count, found.gpus)) == expected


def test_the_users_threads_and_settings_win(tmp_path: Path) -> None:
    launcher = {"_target_": "x.JoblibLauncher", "n_jobs": -1}
    found = shares_of_sweep(compose(["runtime.threads=4", "runtime.cells_at_once=3"]), launcher, tmp_path)
    assert found and found.cores == ()
    assert settings(found, launcher, []) == ["hydra.launcher.n_jobs=3"]
    assert settings(found, launcher, ["hydra.launcher.n_jobs=7"]) == []


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_each_cell_keeps_to_its_share(rela: Rela, tmp_path: Path, launcher: str) -> None:
    """Six cells, two at once, on GPUs 4 and 5 by their variable: no core and no GPU has two cells at a time."""
    plugin(JOBLIB if launcher == "joblib" else LOCAL)
    environment = {"CUDA_VISIBLE_DEVICES": "4,5", **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "")}
    words = (f"hydra/launcher={launcher}", "runtime.cells_at_once=2", *CELLS)
    done = rela("train", "-m", *words, stub=PIPELINE, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "6 cells: 6 run, 0 found, 0 failed"
    found = where(tmp_path)
    assert len(found) == 6
    assert most_at_once(found) == 2
    assert {cell["gpu"] for cell in found} == {"4", "5"}
    total = len(os.sched_getaffinity(0))
    for one in found:
        assert int(one["threads"]) == len(one["cores"]) <= max(1, (total + 1) // 2)
        for other in found:
            if one is not other and one["begun"] <= other["begun"] < one["ended"]:
                assert one["gpu"] != other["gpu"]
                assert total < 2 or not set(one["cores"]) & set(other["cores"])


def test_a_sweep_takes_the_shares_of_whoever_has_started_it(
    rela: Rela, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two, the first is taken: the cells have the second, one after the other."""
    first, second = (0, 1) if len(os.sched_getaffinity(0)) > 1 else (0, 0)
    room = Room("5", tmp_path / "gpu", 8, 1)
    dealt = Shares(tmp_path / "shares", 2, ("4", "5"), (first, second), owner.stamp(), (replace(room, name="4"), room))
    dealt.folder.mkdir()
    with FileLock(dealt.folder / "0.lock"):
        done = rela("train", "-m", "hydra/launcher=basic", "seed=0,1", stub=PIPELINE, env=dealt.variables)
    assert done.stdout.splitlines()[-1] == "2 cells: 2 run, 0 found, 0 failed", done.stdout + done.stderr
    assert "cell 1 of 2 (GPU 5, 1 core): seed=0" in done.stdout
    assert [(cell["gpu"], cell["cores"], cell["threads"]) for cell in where(tmp_path)] == [("5", [second], "1")] * 2
    assert most_at_once(where(tmp_path)) == 1
    monkeypatch.setenv(SHARES, dealt.variables[SHARES])
    assert shares_of_sweep(compose([]), {"_target_": "x.SlurmLauncher"}, tmp_path) is None, "they are elsewhere"


def test_a_share_can_be_taken_where_its_folder_has_been_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a table lie in a temporary folder, which a system may tidy up within the days that it takes."""
    monkeypatch.setattr(module, "_taken", None)
    Shares(tmp_path / "removed" / "shares", 1, (), ()).take()
    try:
        assert module.taken_number() == 0
    finally:
        if module._taken:
            module._taken.release()


@pytest.mark.slow
def test_the_time_of_a_cell_begins_when_it_has_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all that wait at the start of a sweep look as long as those that they wait for."""
    ours = shares(tmp_path, 1, cores=0)
    now = [0.0]
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Shares, "take", lambda _: now.__setitem__(0, 100.0) or "")

    def takes_3_seconds(*_: object) -> Outcome:
        now[0] += 3
        return Outcome("run", None)

    monkeypatch.setattr(Job, "run", takes_3_seconds)
    record = CellTask(Job("train", parse([])), tmp_path, 2, ours).attempt(compose([]), 0, [])  # type: ignore[arg-type]
    assert (record["status"], record["seconds"]) == ("run", 3)


def test_a_share_is_free_again_when_its_process_dies(rela: Rela, tmp_path: Path) -> None:
    plugin(LOCAL)
    dies = PIPELINE.replace("    begun = time", "    config.seed == 0 and os.kill(os.getpid(), 9)\n    begun = time")
    done = rela("train", "-m", "hydra/launcher=submitit_local", "runtime.cells_at_once=1", "seed=0,1", stub=dies)
    assert done.stdout.splitlines()[-1] == "2 cells: 1 run, 0 found, 1 failed", done.stdout
    assert len(where(tmp_path)) == 1


# ------------------------------------------------------------------------------------------------ real runs


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_of_real_cells_makes_each_artifact_once(rela: Rela, tmp_path: Path, launcher: str) -> None:
    """Two at once, one feature cache: what they share is made by one of them; the same command then finds it all."""
    plugin(JOBLIB if launcher == "joblib" else LOCAL)
    words = (
        "train",
        "-m",
        f"hydra/launcher={launcher}",
        "runtime.cells_at_once=2",
        *FAKE,
        "seed=0,1",
        "budget=0.3,0.5",
    )
    if launcher == "joblib":
        words += ("hydra.launcher.n_jobs=2",)
    done = rela(*words)
    assert done.stdout.splitlines()[-1] == "4 cells: 4 run, 0 found, 0 failed", done.stdout + done.stderr
    cache = tmp_path / "outputs" / "cache"
    assert [len(list((cache / kind).glob("[!.]*"))) for kind in ("images", "features", "targets")] == [1, 1, 1]
    assert rela(*words).stdout.splitlines()[-1] == "4 cells: 0 run, 4 found, 0 failed"


@pytest.mark.slow
def test_a_stopped_sweep_tells_its_cells(tmp_path: Path) -> None:
    """SIGTERM to the parent alone: both cells save, and nothing is left behind."""
    plugin(LOCAL)
    words = [
        "train",
        "-m",
        "hydra/launcher=submitit_local",
        "runtime.cells_at_once=2",
        *FAKE,
        "epochs=5000",
        "seed=0,1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rela_cli", *words]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("outputs/runs/*/metrics.jsonl"))) == 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert output.splitlines()[-1] == "2 cells: 0 run, 0 found, 0 failed, 2 not finished"
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/fake-*/manifest.json")]
    assert [manifest["status"] for manifest in manifests] == ["stopped", "stopped"]
    pids = [int(path.read_text()) for path in tmp_path.glob("outputs/sweeps/*/*.pid")]
    assert len(pids) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def wait_for(what: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------- Slurm

SLURM = {  # what of Slurm's commands submitit and our script use, played by processes of this machine
    "sbatch": """
import os, re, subprocess, sys
script, home = os.path.abspath(sys.argv[-1]), os.environ["FAKE_SLURM"]
text = open(script).read()
open(f"{home}/script", "w").write(text)
for task in range(int(re.search(r"--array=0-(\\d+)", text)[1]) + 1):
    own = {"SLURM_JOB_ID": str(100 + task), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
    own |= {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "1", "FAKE_SCRIPT": script}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(["bash", script], env={**os.environ, **own}, start_new_session=True, **quiet)
print("Submitted batch job 7")
""",
    "srun": """
import os, sys
words = sys.argv[1:]
assert words[:2] == ["--unbuffered", "--output"]
task = os.environ["SLURM_ARRAY_TASK_ID"]
log = words[2].replace("%A", "7").replace("%a", task).replace("%t", "0")
os.makedirs(os.path.dirname(log), exist_ok=True)
descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(descriptor, 1), os.dup2(descriptor, 2)
open(os.environ["FAKE_SLURM"] + f"/task-{task}", "w").write(str(os.getpid()))
command = [word.replace("%j", f"7_{task}") for word in words[3:]]
os.execvp(command[0], command)
""",
    "sacct": """
print("JobID|State|NodeList")
for task in range(2): print(f"7_{task}|RUNNING|here")
""",
    "scontrol": """
import os, subprocess, sys
assert sys.argv[1] == "requeue"
open(os.environ["FAKE_SLURM"] + "/requeued", "a").write(sys.argv[2] + "\\n")
again = ["bash", "-c", 'sleep 1; exec bash "$FAKE_SCRIPT"']
if "FAKE_SCRIPT" in os.environ: subprocess.Popen(again, start_new_session=True)
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with Slurm."""
    home = tmp_path / ".slurm"
    home.mkdir()
    for name, code in SLURM.items():
        (home / name).write_text(f"#!{sys.executable}\n{code.lstrip()}")
        (home / name).chmod(0o755)
    path = os.pathsep.join([str(home), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "FAKE_SLURM": str(home), "PYTHONPATH": str(ROOT)}


def flags(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_the_dry_run_prints_the_script_and_starts_nothing(rela: Rela, tmp_path: Path) -> None:
    plugin(LOCAL)
    words = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=90", "seed=0,1,2")
    done = rela("train", "-m", *words, "runtime.dry_run=true")
    assert done.returncode == 0, done.stderr
    found = flags(done.stdout)
    expected = {"partition": "gpu", "time": "90", "signal": "USR2@300", "requeue": "", "array": "0-2%3"}
    expected |= {
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
    }
    assert expected.items() <= found.items()
    assert "srun --unbuffered" in done.stdout and "submitit.core._submit" in done.stdout
    assert "cell 3 of 3: seed=2" in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout.partition("\ncell ")[0], text=True).returncode == 0
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm", "submitit_local"])
def test_a_launcher_whose_plugin_is_not_there(rela: Rela, launcher: str) -> None:
    hide = "import sys\nsys.modules['hydra_plugins.hydra_submitit_launcher'] = None\n"
    hide += "import pkgutil\nwalk = pkgutil.walk_packages\n"
    hide += "pkgutil.walk_packages = lambda *a, **k: (m for m in walk(*a, **k) if 'submitit' not in m.name)\n"
    done = rela("train", "-m", f"hydra/launcher={launcher}", "seed=0,1", stub=hide)
    assert done.returncode == 2
    assert "pip install 'rela-cli[slurm]'" in done.stderr


@pytest.mark.slow
def test_a_cell_at_its_time_limit_saves_is_requeued_and_goes_on(tmp_path: Path, slurm: dict[str, str]) -> None:
    """submitit's own script, processes and signal; only Slurm's four commands are played."""
    plugin(LOCAL)
    words = [
        "train",
        "-m",
        "hydra/launcher=slurm",
        *FAKE,
        "epochs=60",
        "budget=0.3",
        "seed=0,1",
        "checkpoint.every_seconds=10000",
    ]
    command = [sys.executable, "-m", "rela_cli", *words, "runtime.eval_every_epochs=0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=slurm, stdout=subprocess.PIPE, text=True)
    wait_for(
        lambda: any(len(p.read_text().splitlines()) > 2 for p in tmp_path.glob("outputs/runs/*-s0-*/metrics.jsonl"))
    )
    home = Path(slurm["FAKE_SLURM"])
    os.kill(int((home / "task-0").read_text()), signal.SIGUSR2)
    output, _ = process.communicate(timeout=240)
    assert output.splitlines()[-1] == "2 cells: 2 run, 0 found, 0 failed", output
    dry = flags((home / "script").read_text())
    assert dry["array"] == "0-1%2"
    assert (home / "requeued").read_text().split() == ["7_0"]
    manifests = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("outputs/runs/fake-*/manifest.json")}
    resumes = {name.rpartition("-s")[2][0]: len(m.get("resumes", [])) for name, m in manifests.items()}
    assert resumes == {"0": 1, "1": 0}


# ------------------------------------------------------------------------------------------- scripts/slurm.sbatch

RUN = """#!/bin/bash
trap 'echo told >> "$FAKE_SLURM/started"; exit 143' TERM
[[ -n "${FAKE_SIGNAL:-}" ]] && kill -"$FAKE_SIGNAL" "$PPID"
echo "$0 threads=$OMP_NUM_THREADS $*" >> "$FAKE_SLURM/started"
for _ in $(seq ${FAKE_TENTHS:-1}); do sleep 0.1; done
"""


def batch(slurm: dict[str, str], *words: str, **env: str) -> subprocess.Popen[str]:
    """The script as Slurm would start it, with a `python` and a `torchrun` that only say so."""
    home = Path(slurm["FAKE_SLURM"])
    for name in ("python", "torchrun"):
        (home / name).write_text(RUN)
        (home / name).chmod(0o755)
    environment = {**slurm, "SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "8", **env}
    command = ["bash", str(ROOT / "scripts" / "slurm.sbatch"), *words]
    return subprocess.Popen(command, cwd=home, env=environment, text=True, stderr=subprocess.PIPE)


def started(slurm: dict[str, str]) -> str:
    path = Path(slurm["FAKE_SLURM"]) / "started"
    return path.read_text().replace(f"{slurm['FAKE_SLURM']}/", "") if path.exists() else ""


def test_the_script_starts_one_run(slurm: dict[str, str]) -> None:
    assert batch(slurm, "budget=0.5", "seed=1").wait(20) == 0
    assert started(slurm) == "python threads=8 -m rela_cli train budget=0.5 seed=1\n"


def test_the_script_takes_an_arrays_line(slurm: dict[str, str]) -> None:
    cells = Path(slurm["FAKE_SLURM"]) / "cells.txt"
    cells.write_text("seed=0 budget=0.1\nseed=1 budget=0.5\n")
    assert batch(slurm, "cells.txt", "prior=none", SLURM_ARRAY_TASK_ID="1").wait(20) == 0
    assert started(slurm).endswith("-m rela_cli train seed=1 budget=0.5 prior=none\n")
    process = batch(slurm, "cells.txt", SLURM_ARRAY_TASK_ID="2")
    assert (process.wait(20), process.stderr and process.stderr.read()) == (2, "cells.txt has no line 3\n")


def test_the_script_starts_a_process_a_gpu(slurm: dict[str, str]) -> None:
    assert batch(slurm, "seed=1", SLURM_GPUS_ON_NODE="4").wait(20) == 0
    assert started(slurm) == "python threads=2 -m rela_cli train seed=1 runtime.devices=4\n"


def test_the_script_uses_torchrun_on_several_machines(slurm: dict[str, str]) -> None:
    """Each knows its number, and they meet by the backend that unpickles nothing."""
    env = {"SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "a,b"}
    for name, text in {"srun": 'exec "$@"\n', "scontrol": "echo first\necho second\n"}.items():
        path = Path(slurm["FAKE_SLURM"]) / name
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
    assert batch(slurm, "name='a b'", **env).wait(20) == 0
    meeting = "--rdzv_backend=static --master_addr=first --master_port=20042"
    expected = (
        f"torchrun threads=2 --nnodes=2 --node_rank=1 --nproc_per_node=4 {meeting} -m rela_cli train name='a b'\n"
    )
    assert started(slurm) == expected


@pytest.mark.parametrize(("signum", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_script_passes_signals_on(slurm: dict[str, str], signum: signal.Signals, requeued: bool) -> None:
    process = batch(slurm, "seed=1", FAKE_TENTHS="300")
    wait_for(lambda: started(slurm))
    process.send_signal(signum)
    assert process.wait(20) == 143
    assert started(slurm).endswith("told\n")
    assert (Path(slurm["FAKE_SLURM"]) / "requeued").exists() == requeued


def test_the_script_passes_on_a_signal_that_comes_at_once(slurm: dict[str, str]) -> None:
    """It may come before the script knows its run's number, or when the run has ended already."""
    assert batch(slurm, "seed=1", FAKE_SIGNAL="USR1", FAKE_TENTHS="300").wait(20) == 143
    assert started(slurm).endswith("told\n")
    assert (Path(slurm["FAKE_SLURM"]) / "requeued").exists()
