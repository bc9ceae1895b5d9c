"""The command line as a user meets it: processes, messages, exit statuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from rela_cli import __version__, cli
from rela_cli.errors import MissingError, NonFiniteError, Stopped
from tests.conftest import NO_TORCH, ROOT, Rela

NO_HYDRA = NO_TORCH.replace('("torch",', '("hydra", "omegaconf", "yaml", "rich", "numpy", "torch",')

# A pipeline whose runs end as their seed says: the real command line, Hydra and launchers, no training.
PIPELINE = """
import os, sys, types
from pathlib import Path
pipeline, table = types.ModuleType("rela_cli.pipeline.pipeline"), types.ModuleType("rela_cli.report.tables.tables")
command = types.ModuleType("rela_cli.commands.table")
pipeline.STAGES = ("extract", "transport", "train", "probe")
def run(config, until="probe", command=""):
    from rela_cli import errors
    if config.seed == 11: raise errors.NonFiniteError("loss is NaN at step 3")
    if config.seed == 12: sys.exit(7)
    if config.seed == 13: raise ZeroDivisionError("by zero")
    if config.seed == 14: raise errors.Stopped("stopped by SIGTERM", 15)
    if config.seed == 15: raise KeyboardInterrupt
    if config.seed == 16: os._exit(9)
    if config.seed == 17: raise errors.MissingError("no weights at x.pth")
    folder = Path(config.paths.outputs) / "runs" / f"{config.prior.name}-{config.budget:g}-{config.seed}"
    found = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command").write_text(command)
    (folder / "until").write_text(until)
    return types.SimpleNamespace(status="found" if found else "run", folder=folder)
pipeline.run = run
table.print_table = lambda folders: print(f"TABLE of {len(folders)}")
def main(argv):
    print("table", argv)
    return 5
command.main = main
sys.modules[command.__name__] = command
sys.modules["rela_cli.pipeline.pipeline"], sys.modules["rela_cli.report.tables.tables"] = pipeline, table
"""


# ----------------------------------------------------------------------------------------------------- no torch


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",), ("--version",), ("trian",), ("budget=0.5",)])
def test_top_level_needs_the_standard_library_only(rela: Rela, words: tuple[str, ...]) -> None:
    done = rela(*words, stub=NO_HYDRA, kind="fresh")
    if words and words[0] in ("trian", "budget=0.5"):
        assert done.returncode == 2
        assert ("did you mean train?" if words[0] == "trian" else "rela train budget=0.5") in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert (f"rela {__version__}" if words == ("--version",) else "rela train +budget=0.5") in done.stdout


def test_imports_without_torch() -> None:
    names = ("pipeline.pipeline", "launch.sweep", "report.tables", "commands.list", "commands.doctor")
    code = NO_TORCH + "".join(f"import rela_cli.{name}\n" for name in names) + "print(rela_cli.compose().budget)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


# -------------------------------------------------------------------------------------------------------- typos

TYPOS = [
    ("train bugdet=0.5", ["unknown key bugdet, did you mean budget?"]),
    ("train +bugdet=0.5", ["unknown key bugdet, did you mean budget?"]),
    ("train ++bugdet=0.5", ["unknown key bugdet, did you mean budget?"]),
    ("train -m bugdet=0.1,0.5", ["unknown key bugdet, did you mean budget?"]),
    ("train zzzzz=1", ["unknown key zzzzz (allowed: prior, transport", "experiment"]),
    ("train prior=randm", ["unknown prior randm, did you mean random?", "(allowed: checkpoint, "]),
    ("train +prior=randm", ["unknown prior randm, did you mean random?"]),
    ("train -m prior=none,randm", ["unknown prior randm, did you mean random?"]),
    ("train prior=null", ["prior takes one name"]),
    ("train prior=none prior.patches=3", ["unknown key prior.patches for prior=none (it has no keys)"]),
    ("train =3", ["cannot read =3", "the key is missing"]),
    ("train method@x=simclr", ["method@x=simclr: Could not override"]),
    ("train paths.outputs=", ["paths.outputs= must name a folder"]),
    ("train --config-dir odd prior=torn", ["cannot read", "/prior/torn.yaml, line 2"]),
    ("train --config-dir odd -m prior=torn,none", ["/prior/torn.yaml, line 2"]),
    ("train --config-dir odd prior=patches prior.width=8", ["unknown key prior.width", "prior=random has it"]),
    ("train --config-dir odd experiment=lost", ["experiment=lost: ", "'prior/nowhere'"]),
    ("train lr=1e-3", ["unknown key lr, did you mean optimizer.lr?"]),
    ("train dataset=image_folder image_size=32", ["unknown key image_size, did you mean dataset.image_size?"]),
    ("train priorr=random", ["unknown key priorr, did you mean prior?"]),
    ("train prior=random prior.widht=8", ["unknown key prior.widht for prior=random, did you mean prior.width?"]),
    ("train +prior=random +prior.widht=8", ["did you mean prior.width?", "allowed: width, seed"]),
    ("train prior=patches prior.width=8", ["unknown key prior.width for prior=patches", "prior=random has it"]),
    ("train matching.view.fliip_p=1", ["unknown key matching.view.fliip_p, did you mean matching.view.flip_p?"]),
    ("train seed.value=1", ["unknown key seed.value"]),
    ("train budget=2", ["budget=2", "must be above 0 and at most 1"]),
    ("train budget=", ["budget= must be a number"]),
    ("train budget=half", ["budget=half must be a number"]),
    ("train epochs=1.5", ["epochs=1.5 must be a whole number"]),
    ("train budget=1,2", ["budget=1,2 is several values", "-m"]),
    ("train budget=range(1,3)", ["say -m"]),
    ("train budget='1", ["cannot read budget='1"]),
    ("train allow=[a", ["cannot read allow=[a"]),
    ("train budget=a=b", ["cannot read budget=a=b"]),
    ("train -m hydra/launcher=slurm", ["pip install 'rela-cli[slurm]'"]),
    ("train budget", ["cannot read budget: settings are key=value"]),
    ("train epochs=${nowhere}", ["nowhere"]),
    ("train ~prior", ["missing key prior"]),
    ("train -m seed=0,-1", ["seed=-1 must be at least 0", "cell seed=-1"]),
    ("train -m budget=glob(zz)", ["no cells"]),
    ("train -m seed=0,1 budget=[", ["cannot read budget=["]),
    ("train -m seed=0,1 budget=[ bugdet=1", ["cannot read budget=[", "did you mean budget?"]),
    ("train -m hydra/launcher=jobblib", ["unknown hydra/launcher jobblib"]),
    ("train hydra.verbos=1", ["unknown key hydra.verbos, did you mean hydra.verbose?"]),
    ("train sweep=budgets", ["say -m: rela train -m sweep=budgets"]),
    ("train hydra.mode=MULTIRUN bugdet=1", ["did you mean budget?"]),
    ("train prior=checkpoint", ["prior.weights=PATH"]),
    ("train --budget 0.5", ["unknown flag --budget", "budget=..."]),
    ("train --mulitrun", ["unknown flag --mulitrun, did you mean --multirun?", "--config-dir"]),
    ("train --config-dir", ["--config-dir needs a value"]),
    ("train --config-dir nowhere", ["nowhere is not a folder"]),
    ("train --experimental-rerun x.pickle", ["--experimental-rerun is switched off"]),
    ("train --config-name other", ["other"]),
    ("train --package matching.view", ["--package belongs to --cfg", "add --cfg job"]),
    ("train --resolve", ["--resolve belongs to --cfg", "add --cfg job"]),
    ("train --cfg job bugdet=1", ["did you mean budget?"]),
    ("train --help prior=randm", ["did you mean random?"]),
    ("probe bugdet=1", ["did you mean budget?"]),
    ("bench augmnt", ["ROW=augmnt must be one of augment, ingest", "did you mean augment?"]),
    ("bench knn --peer lihgtly", ["--peer=lihgtly must be one of", "did you mean lightly?"]),
    ("bench --rounds 0", ["--rounds=0 must be a whole number of at least 1"]),
    ("bench --jsn x", ["unrecognized arguments: --jsn", "did you mean --json?"]),
    ("bench knn --device gpu", ["--device=gpu must be one of all, cpu, cuda"]),
    ("tabel", ["unknown command tabel, did you mean table?"]),
    ("list prioors", ["unknown group prioors, did you mean priors?"]),
    ("-sc", ["install=bash"]),
    ("-sc query=bash", ["COMP_LINE"]),
    (
        "train bugdet=1 prior=randm matching.transfr=frozen budget=7 epochs=x",
        ["unknown key bugdet", "unknown prior randm", "matching.transfer", "budget=7", "epochs=x must be"],
    ),
]

ALL_TYPOS = """
import contextlib, io, json, os, sys
from rela_cli.cli import main
os.environ.pop("COMP_LINE", None)
for line in json.load(sys.stdin):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        status = main(line.split(" "))
    print(json.dumps([line, status, error.getvalue()]))
"""


ODD = {  # a config folder of the user's
    "prior/torn.yaml": "a: [\n",
    "experiment/lost.yaml": "# @package _global_\ndefaults:\n  - override /prior: nowhere\n",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each typo is answered, all in one process that dies if anything imports torch."""
    folder, others = tmp_path_factory.mktemp("typos"), tmp_path_factory.mktemp("odd")
    for name, text in ODD.items():
        (others / name).parent.mkdir()
        (others / name).write_text(text)
    lines = [line.replace("--config-dir odd", f"--config-dir {others}") for line, _ in TYPOS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + ALL_TYPOS],
        input=json.dumps(lines),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == [], "a command line that cannot be meant leaves nothing behind"
    answered = [json.loads(line) for line in done.stdout.splitlines()]
    return {line: (status, error) for (line, _), (_, status, error) in zip(TYPOS, answered, strict=True)}


@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, cli.SPINS), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_how_threads_wait_is_for_the_user_to_say(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], spins: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # what the command sets is put back, too
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ.get("OMP_WAIT_POLICY") == said.get("OMP_WAIT_POLICY")


@pytest.mark.skipif(find_spec("submitit") is not None, reason="the launcher is there")
def test_a_launcher_that_is_not_installed(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      budget: 0.2,0.5\n"
    )
    words = ("--config-dir", "conf", "sweep=mine", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "seed=0,1")
    done = rela("train", "-m", *words, "runtime.dry_run=true")
    assert done.returncode == 2 and "it comes with: pip install 'rela-cli[slurm]'" in done.stderr
    assert "say -m" not in done.stderr


@pytest.mark.parametrize(("line", "parts"), TYPOS, ids=[line for line, _ in TYPOS])
def test_typos(answers: dict[str, tuple[int, str]], line: str, parts: list[str]) -> None:
    status, error = answers[line]
    assert status == 2
    assert error.startswith("rela: ")
    assert [part for part in parts if part not in error] == [], error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 8
    if line.startswith("train -m"):
        assert "say -m" not in error, "it has been said"


# ---------------------------------------------------------------------------------------------- Hydra's own flags


def test_help_of_a_command(rela: Rela) -> None:
    done = rela("train", "--help", stub=NO_TORCH)
    assert done.returncode == 0
    for part in ("usage: rela train", "prior: checkpoint, ", "Defaults: dataset=digits", "+budget=0.5"):
        assert part in done.stdout
    assert len(done.stdout.splitlines()) < 60


def test_cfg_job(rela: Rela) -> None:
    done = rela("train", "--cfg", "job", "+budget=0.5", "+prior=random", "prior.width=8", stub=NO_TORCH)
    assert done.returncode == 0
    assert "budget: 0.5" in done.stdout
    assert "width: 8" in done.stdout
    assert "hydra:" not in done.stdout


def test_package_and_info(rela: Rela) -> None:
    assert rela("train", "--cfg", "job", "-p", "matching.view").stdout.startswith("# @package matching.view")
    assert "conf" in rela("train", "--info", "searchpath").stdout


def test_user_part_from_config_dir(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "mine" / "prior").mkdir(parents=True)
    (tmp_path / "mine" / "prior" / "own.yaml").write_text("# Own.\nname: own\n_target_: my.Prior\nknob: 1\n")
    done = rela("train", "--config-dir", "mine", "prior=own", "prior.knob=2", "--cfg", "job")
    assert "knob: 2" in done.stdout
    asked = rela("train", "--config-dir", "mine", "prior=own", "prior.nob=2")
    assert (asked.returncode, "did you mean prior.knob?" in asked.stderr) == (2, True)
    refused = rela("train", "--config-dir", "mine", "prior=own", stub=NO_TORCH)
    assert (refused.returncode, "allow=[my]" in refused.stderr) == (2, True)
    assert rela("train", "--config-dir", "mine", "prior=own", "allow=[my]", stub=PIPELINE).returncode == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "rela ",
            {
                "train",
                "extract",
                "transport",
                "probe",
                "fetch",
                "plan",
                "rank",
                "switch-trace",
                "embed",
                "export",
                "push",
                "table",
                "plot",
                "report",
                "reproduce",
                "bench",
                "ls",
                "show",
                "clean",
                "list",
                "convert",
                "data",
                "doctor",
                "embed",
                "export",
                "push",
                "watch",
            },
        ),
        ("rela tr", {"train", "transport"}),
        ("rela train prior=r", {"prior=random", "prior=random_learner", "prior=rela_run"}),
        ("rela table x", set()),
        ("rela table --format ", {"rich", "md", "csv", "json", "latex"}),
        ("rela table --equal-cost s", {"seconds", "samples"}),
        ("rela plot --out", {"--out", "--outputs"}),
        ("rela list me", {"methods"}),
        ("rela list priors s", {"switches", "sweeps"}),
        ("rela reproduce table1-c", {"table1-cifar10", "table1-cifar100"}),
        ("rela reproduce table1-tin --profile ", {"mini", "full", "smoke"}),
        ("rela data ", {"check", "pack", "holdout"}),
        ("rela data pack --s", {"--size", "--shard-mb"}),
        ("rela rank --pr", {"--priors"}),
        ("rela bench au", {"augment"}),
        ("rela show ", set()),
        ("rela export --format o", {"onnx"}),
    ],
)
def test_completion(rela: Rela, line: str, words: set[str]) -> None:
    done = rela("-sc", "query=bash", env={"COMP_LINE": line}, stub=NO_TORCH)
    assert (done.returncode, set(done.stdout.split())) == (0, words)


def test_completion_script(rela: Rela) -> None:
    done = rela("-sc", "install=bash")
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("hydra_bash_completion rela")


# --------------------------------------------------------------------------------------------------- single runs


@pytest.mark.parametrize(
    ("seed", "status", "message"),
    [
        (0, 0, ""),
        (11, 4, "rela: loss is NaN at step 3"),
        (14, 143, "rela: stopped by SIGTERM"),
        (15, 130, "rela: stopped; the same command goes on"),
        (17, 3, "rela: no weights at x.pth"),
    ],
)
def test_exit_status_of_a_run(rela: Rela, seed: int, status: int, message: str) -> None:
    done = rela("train", f"seed={seed}", stub=PIPELINE)
    assert (done.returncode, done.stderr.strip()) == (status, message)


def test_unexpected_error_is_one_short_screen(rela: Rela) -> None:
    done = rela("train", "seed=13", stub=PIPELINE)
    assert done.returncode == 1
    assert re.fullmatch(
        r"rela: unexpected error in launch/job\.py:\d+\n  ZeroDivisionError: by zero\n"
        r"  set RELA_DEBUG=1 for the traceback\n",
        done.stderr,
    )
    assert "Traceback" in rela("train", "seed=13", stub=PIPELINE, env={"RELA_DEBUG": "1"}).stderr


@pytest.mark.parametrize(("command", "until"), [("train", "probe"), ("extract", "extract"), ("probe", "probe")])
def test_commands_name_the_last_stage(rela: Rela, tmp_path: Path, command: str, until: str) -> None:
    assert rela(command, "+budget=0.5", "seed=3", stub=PIPELINE).returncode == 0
    folder = tmp_path / "outputs" / "runs" / "patches-0.5-3"
    assert (folder / "until").read_text() == until
    assert (folder / "command").read_text() == f"rela {command} budget=0.5 seed=3"


def test_other_commands_pass_their_words_on(rela: Rela) -> None:
    done = rela("table", "--format", "md", stub=PIPELINE)
    assert (done.returncode, done.stdout) == (5, "table ['--format', 'md']\n")


@pytest.mark.parametrize(
    ("error", "status"), [(MissingError("m"), 3), (NonFiniteError("n"), 4), (Stopped("s", 15), 143), (OSError("o"), 1)]
)
def test_errors_become_statuses(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: object) -> int:
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main([]) == status
    assert str(error) in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- sweeps

SWEEP = ("train", "-m", "budget=0.1,0.2,0.5", "prior=none,random", "seed=0,1,2")


def test_sweep_runs_then_finds_then_fills_gaps(rela: Rela, tmp_path: Path) -> None:
    first = rela(*SWEEP, stub=PIPELINE)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-2:] == ["TABLE of 18", "18 cells: 18 run, 0 found, 0 failed"]
    assert "cell 18 of 18: budget=0.5 prior=random seed=2" in first.stdout
    gone = tmp_path / "outputs" / "runs" / "random-0.2-1"
    assert (gone / "command").read_text() == "rela train budget=0.2 prior=random seed=1"
    (gone / "command").unlink()
    (gone / "until").unlink()
    gone.rmdir()
    again = rela("train", "-m", "+budget=0.2,0.5", "++prior=random", "seed=0,1,2", stub=PIPELINE)
    assert again.stdout.splitlines()[-1] == "6 cells: 1 run, 5 found, 0 failed"


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_failures_are_all_listed_and_stop_nothing(rela: Rela, tmp_path: Path, launcher: str) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    more = [f"hydra/launcher={launcher}"] + (["hydra.launcher.n_jobs=2"] if launcher == "joblib" else [])
    done = rela("train", "-m", "seed=0,11,12,13,1", *more, stub=PIPELINE)
    assert done.returncode == 7
    lines = done.stdout.splitlines()
    assert lines[-1] == "5 cells: 2 run, 0 found, 3 failed"
    for number, seed, message in [
        (2, 11, "NonFiniteError: loss is NaN at step 3"),
        (3, 12, "sys.exit(7)"),
        (4, 13, "ZeroDivisionError: by zero"),
    ]:
        at = lines.index(f"failed: cell {number}: seed={seed}")
        assert message in lines[at + 1]
        trace = tmp_path / lines[at + 2].partition("traceback: ")[2]
        assert "Traceback (most recent call last)" in trace.read_text()
    records = sorted((tmp_path / "outputs" / "sweeps").glob("*/*.json"))
    assert [json.loads(path.read_text())["status"] for path in records] == ["run", "failed", "failed", "failed", "run"]


def test_a_killed_cell_counts_as_failed(rela: Rela) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = rela("train", "-m", "seed=16", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", stub=PIPELINE)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 cell: 0 run, 0 found, 1 failed"
    assert "ended without a word" in done.stdout


@pytest.mark.parametrize(("seed", "status"), [(14, 143), (15, 130)])
def test_a_signal_ends_the_sweep_with_a_summary(rela: Rela, seed: int, status: int) -> None:
    done = rela("train", "-m", f"seed=0,{seed},1", stub=PIPELINE)
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == "3 cells: 1 run, 0 found, 0 failed, 2 not finished"
    assert "the same command goes on" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_bad_cell_is_said_before_the_first_one_starts(rela: Rela, tmp_path: Path) -> None:
    done = rela("train", "-m", "prior=none,checkpoint", "seed=0,1", stub=PIPELINE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "prior=checkpoint needs prior.weights=PATH" in done.stderr
    assert done.stderr.count("prior.weights=PATH") == 1
    assert not (tmp_path / "outputs").exists()


def test_sweep_preset(rela: Rela) -> None:
    done = rela("train", "-m", "sweep=priors", "budget=0.5", stub=PIPELINE)
    assert done.stdout.splitlines()[-1] == "5 cells: 5 run, 0 found, 0 failed"


def test_odd_output_folder(rela: Rela, tmp_path: Path) -> None:
    done = rela("train", "-m", "seed=0,1", "paths.outputs='it\\'s, a (test)'", stub=PIPELINE)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".stub") == ["it's, a (test)"]


# ----------------------------------------------------------------------------------------------- list and doctor


def test_list(rela: Rela) -> None:
    done = rela("list", stub=NO_HYDRA.replace('"yaml", ', ""), kind="fresh")
    assert done.returncode == 0
    for name in ("datasets", "priors", "experiments", "sweeps"):
        assert f"\n{name} (" in "\n" + done.stdout
    assert re.search(r"^   clip_vitb16 +512 +86.2 M +MIT +none  CLIP ViT-B/16", done.stdout, re.MULTILINE)
    assert re.search(r"^   cifar10_resnet18 +512 +11.2 M +MIT +cifar10  ", done.stdout, re.MULTILINE)
    assert re.search(r"^ \* resnet18 +64 +0.18 M  ", done.stdout, re.MULTILINE)
    assert re.search(r"^ \* digits +scikit-learn's 1,797 real handwritten digits", done.stdout, re.MULTILINE)
    one = rela("list", "probes", "switches", stub=NO_HYDRA, kind="fresh").stdout
    assert re.findall(r"^(\w+) \(", one, re.MULTILINE) == ["switches", "probes"]
    protocols = ["rela", "lbfgs", "knn", "sgd_grid", "few_shot", "finetune", "segment"]
    assert re.findall(r"^ \* (\w+)", one, re.MULTILINE) == ["adaptive", *protocols]


def test_list_in_80_columns(rela: Rela) -> None:
    """Columns stay columns whatever a name is long, and a description is a sentence, to its end."""
    done = rela("list", stub=NO_HYDRA.replace('"yaml", ', ""), kind="fresh", env={"COLUMNS": "80"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and max(map(len, lines)) <= 80
    text = re.sub(r"\s+", " ", done.stdout)
    assert "packed Images in a few large files, as `rela data pack dataset=... --to FOLDER` writes them; only" in text
    assert "rela train -m sweep=budgets_priors priors Every prior" in text, "the second sentence is left out"
    rows = lines[lines.index("experiments (experiment=...)") + 1 : lines.index("sweeps (sweep=...)") - 1]
    begins = {re.match(r" {3}\w+ +| +", row).end() for row in rows}  # type: ignore[union-attr]
    assert len(begins) == 1, "every description and what it goes on with begins in one column"


def test_every_part_says_what_it_is_in_a_sentence() -> None:
    from rela_cli.commands.list import first_sentence
    from rela_cli.config.schema import CONF_DIR, GROUPS

    for path in (path for group in GROUPS for path in (CONF_DIR / group).glob("*.yaml")):
        text = path.read_text()
        comment = " ".join(re.findall(r"^# ?(?!@package)(.*)", text.partition("\n\n")[0], re.MULTILINE))
        assert f"{first_sentence(text)}." in re.sub(r"\s+", " ", comment), path
        assert first_sentence(text).count("`") % 2 == 0, path
    assert (
        first_sentence("# As `a b=... --to c. d` has it, et al. say. More.")
        == "As `a b=... --to c. d` has it, et al. say"
    )


def test_list_names_every_protocol() -> None:
    import typing

    from rela_cli.commands.list import PROTOCOL_SENTENCES
    from rela_cli.config.schema import Probe

    protocols = typing.get_type_hints(Probe, include_extras=True)["protocols"]
    one_of = typing.get_args(typing.get_args(protocols)[0])[1]
    assert tuple(PROTOCOL_SENTENCES) == one_of.names


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rela_cli", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    error = process.stderr.read()
    assert (process.wait(timeout=60), error) == (141, b"")
    process.stderr.close()


@pytest.fixture
def doctor_env(tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": "http://127.0.0.1:9", "RELA_DATA": str(tmp_path), "WANDB_API_KEY": "", "HOME": str(tmp_path)}


FAKE_TORCH = """
import sys, types
torch = types.ModuleType("torch")
torch.__version__ = "2.15.0"
torch.cuda = types.SimpleNamespace(is_available=lambda: False)
torch.get_num_threads = lambda: 1
sys.modules["torch"] = torch
"""


def test_doctor(rela: Rela, doctor_env: dict[str, str]) -> None:
    good = FAKE_TORCH + 'torchvision = types.ModuleType("torchvision")\ntorchvision.__version__ = "0.29.2"\n'
    good += 'sys.modules["torchvision"] = torchvision\n'
    done = rela("doctor", "--json", stub=good, env=doctor_env)
    report = json.loads(done.stdout)
    by_name = {check["name"]: check for check in report["checks"]}
    assert set(by_name) == {
        *("rela", "python", "packages", "hydra", "torch", "torchvision", "load"),
        *("device", "images", "outputs", "locks", "cache", "weights", "hub", "wandb", "data"),
    }
    assert by_name["hub"]["status"] == "warn"
    assert by_name["device"]["text"].startswith("CPU, ")
    assert (by_name["locks"]["status"], by_name["cache"]["text"]) == ("ok", "no outputs/ here yet")
    assert (by_name["outputs"]["status"], by_name["hydra"]["status"], by_name["data"]["status"]) == ("ok", "ok", "ok")
    assert report["ok"] == (done.returncode == 0) == all(c["status"] != "fail" for c in report["checks"])
    assert by_name["rela"]["text"] == f"{__version__} in {ROOT / 'rela_cli'}"
    said = [check["text"] for check in report["checks"]]
    assert [
        sum(bool(re.search(rf"\b{name} \d", text)) for text in said) for name in ("torch", "torchvision", "hydra-core")
    ] == [1, 1, 1]
    assert re.match(
        r"\d+\.\d processes at work in the last minute, \d+\.\d in .* on \d+ cores", by_name["load"]["text"]
    )


@pytest.mark.parametrize(("average", "status"), [(0.5, "ok"), (2.0, "warn")])
def test_doctor_warns_of_a_busy_machine(monkeypatch: pytest.MonkeyPatch, average: float, status: str) -> None:
    from rela_cli.commands import doctor

    monkeypatch.setattr("os.getloadavg", lambda: (average, 0.25, 1.75))
    monkeypatch.setattr("rela_cli.commands.doctor.cores", lambda: [0, 1])
    monkeypatch.setattr("rela_cli.machine.memory.free", lambda: 3 * 10**9)
    check = doctor.load()
    said = f"{average} processes at work in the last minute, 1.8 in the last 15, on 2 cores; 3.0 GB of memory free"
    assert (check.status, check.text) == (status, said)


def test_doctor_sees_what_killed_processes_left(rela: Rela, tmp_path: Path, doctor_env: dict[str, str]) -> None:
    (tmp_path / "outputs" / "cache" / "features" / ".aaaaaaaaaaaaaaaa.tmp").mkdir(parents=True)
    (tmp_path / "outputs" / "cache" / "images" / "bbbbbbbbbbbbbbbb").mkdir(parents=True)
    done = rela("doctor", stub=FAKE_TORCH, env=doctor_env)
    assert re.search(r"^warn +cache +0 runs, 1 entry, 0 kB; 1 damaged, 1 leftover", done.stdout, re.MULTILINE)
    assert "-> rela clean" in done.stdout
    other = rela("doctor", "--outputs", "mine", stub=FAKE_TORCH, env=doctor_env).stdout
    assert f"{tmp_path}/mine can be written to" in other and "no mine/ here yet" in other


def test_doctor_knows_the_nms_error(rela: Rela, tmp_path: Path, doctor_env: dict[str, str]) -> None:
    (tmp_path / "torchvision.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    done = rela("doctor", stub=FAKE_TORCH + f"sys.path.insert(0, {str(tmp_path)!r})\n", env=doctor_env, kind="fresh")
    assert done.returncode == 1
    assert re.search(r"^fail +torchvision +torchvision was built for another torch than", done.stdout, re.MULTILINE)
    assert "pip install --force-reinstall torchvision" in done.stdout


def test_doctor_sees_a_folder_it_cannot_write_to(rela: Rela, tmp_path: Path, doctor_env: dict[str, str]) -> None:
    (tmp_path / "outputs").mkdir()
    full = "import tempfile\ndef fail(*a, **k): raise OSError(28, 'No space left on device')\n"
    done = rela("doctor", stub=FAKE_TORCH + full + "tempfile.TemporaryFile = fail\n", env=doctor_env)
    assert done.returncode == 1
    assert "No space left on device" in done.stdout
    assert "paths.outputs=FOLDER" in done.stdout
