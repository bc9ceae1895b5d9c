"""One grammar for all commands: help helps and does nothing else, flags are told from settings, old spellings go on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rela_cli.cli import HELP, OTHER_COMMANDS, STAGED
from rela_cli.commands.data.verbs import VERBS
from rela_cli.config.arguments import Parser
from rela_cli.errors import ConfigError
from tests.conftest import NO_TORCH, ROOT, Rela

COMMANDS = [*STAGED, *OTHER_COMMANDS, *(f"data {verb}" for verb in VERBS)]
FORMS = ("{} --help", "{} -h", "help {}", "{} word key=value --json --help", "{} --nonsense")
WALK = """
import contextlib, io, json, sys
from rela_cli.cli import main
for line in json.load(sys.stdin):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(out):
        status = main(line.split(" "))
    print(json.dumps([line, status, out.getvalue(), error.getvalue()]))
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What every form of every command answers, in one process that dies if anything imports torch."""
    folder = tmp_path_factory.mktemp("walk")
    lines = [
        form.format(command) for form in FORMS for command in COMMANDS if "word" not in form or command not in STAGED
    ]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + WALK],
        input=json.dumps(lines),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == [], "nothing is run and nothing is written"
    return {line: (status, out, error) for line, status, out, error in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(walked: dict[str, tuple[int, str, str]], command: str, form: str) -> None:
    if form.format(command) not in walked:
        pytest.skip("the word would be an override, which is read first")
    status, out, error = walked[form.format(command)]
    if "nonsense" in form:
        assert (status, out) == (2, ""), error
        assert "--nonsense" in error
        return
    assert (status, error) == (0, "")
    assert out.startswith(f"usage: rela {command} ")
    assert len(re.findall(rf"^  rela {command} ?.*", out, re.MULTILINE)) >= 2, "two examples"


def test_the_list_of_commands_is_whole() -> None:
    named = {match[1] for match in re.finditer(r"^  (data \w+|[a-z-]+) ", HELP, re.MULTILINE)}
    assert set(COMMANDS) - {"data"} <= named


OLD = [
    ("rank priors=[random] n=5", "priors=[random] is now --priors [random]", "--n=5 must be a whole number"),
    ("plan samples=x", "samples=x is now --samples x", "--samples=x must be a number"),
    ("data pack dataset=fake to=p size=1", "to=p is now --to p", "--size=1 must be a whole number from 4"),
    ("table format=md", "format=md is now --format=md", "no result.json"),
    ("reproduce table-methods profile=smok", "profile=smok is now --profile=smok", "did you mean smoke?"),
    ("ls nowhere", "rela ls nowhere is now rela ls --outputs nowhere", "nowhere is not a folder"),
    ("clean nowhere", "rela clean nowhere is now rela clean --outputs nowhere", "nowhere is not a folder"),
]


@pytest.mark.parametrize(("line", "said", "answer"), OLD, ids=[line for line, *_ in OLD])
def test_an_old_spelling_goes_on_with_a_word(rela: Rela, line: str, said: str, answer: str) -> None:
    error = rela(*line.split(), stub=NO_TORCH).stderr
    assert f"rela: {said}\n" in error
    assert answer in error


IDLE = [
    ("seed=1 budget=0.5 seed=2", ["seed=1 has no effect: seed=2 comes after it"]),
    ("-m seed=1 seed=2,3", ["seed=1 has no effect: seed=2,3 comes after it"]),
    ("dataset=digits dataset=fake", ["dataset=digits has no effect: dataset=fake comes after it"]),
    (
        "logger=tensorboard logger.project=x logger.uri=y",
        [
            "logger.project=x has no effect: only logger=wandb or logger=mlflow or logger=trackio reads it",
            "logger.uri=y has no effect: only logger=mlflow reads it",
        ],
    ),
    ("logger=[tensorboard,mlflow] logger.project=x logger.uri=y", []),
    (
        "prior=none switch=never transport.power=0.5 seed=1",
        [
            "switch=never has no effect: prior=none is the method by itself",
            "transport.power=0.5 has no effect: prior=none is the method by itself",
        ],
    ),
    ("seed=1 seed=1 hydra/launcher=basic", ["hydra/launcher=basic has no effect without -m: this is a single run"]),
    ("-m hydra/launcher=basic seed=1", []),
    (
        "probe.knn_k=5 probe.few_shot_k=2 probe.protocols=[rela,knn]",
        ["probe.few_shot_k=2 has no effect: few_shot is not one of probe.protocols=[rela,knn]"],
    ),
]


@pytest.mark.parametrize(("line", "said"), IDLE, ids=[line for line, _ in IDLE])
def test_what_has_no_effect_is_said(line: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from rela_cli.config.compose import Composer
    from rela_cli.config.overrides import parse

    composer = Composer(parse(line.split()))
    composer.cells() if composer.line.is_sweep else composer.check()
    composer.say_notes()
    assert capsys.readouterr().err == "".join(f"rela: {one}\n" for one in said)


def test_of_several_processes_of_a_run_only_the_one_that_started_them_says_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rela_cli.config.compose import Composer
    from rela_cli.config.overrides import parse
    from rela_cli.distributed.ranks import MEETING

    composer = Composer(parse(["seed=1", "seed=2"]))
    composer.check()
    monkeypatch.setenv(MEETING, "somewhere")
    composer.say_notes()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["ls", "table", "plot", "report", "show", "clean", "switch-trace"])
@pytest.mark.parametrize("spelling", ["--outputs nowhere", "--outputs=nowhere", "paths.outputs=nowhere"])
def test_the_folder_of_runs_is_named_alike(command: str, spelling: str) -> None:
    from importlib import import_module

    given = import_module(f"rela_cli.commands.{OTHER_COMMANDS[command]}").parser().read(spelling.split())
    assert given.outputs == Path("nowhere")


@pytest.mark.parametrize("words", [("--outputs", "o,1"), ("--outputs=o,1",), ("paths.outputs='o,1'",)])
def test_and_by_commands_that_compose(words: tuple[str, ...]) -> None:
    from rela_cli.commands.plan import parser
    from rela_cli.config.compose import Composer
    from rela_cli.config.overrides import parse

    assert Composer(parse(words)).check().paths.outputs == "o,1"
    assert Composer(parse(parser().words(words))).check().paths.outputs == "o,1"


@pytest.mark.parametrize("command", ["table", "ls", "show", "plot"])
def test_nothing_there_is_one_status(rela: Rela, command: str) -> None:
    done = rela(command, "--outputs", "nowhere", stub=NO_TORCH)
    assert (done.returncode, "nowhere" in done.stderr) == (3, True)


def test_inside_of_an_outputs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path)
    parser = Parser("x", "x")
    parser.add_outputs()
    assert parser.read([]).outputs == Path()
    assert "this folder is one" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="did you mean --outputs"):
        parser.read(["--output", "x"])


def test_a_folder_in_the_place_of_a_setting(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    error = rela("train", "photos", stub=NO_TORCH).stderr
    assert "dataset=image_folder dataset.root=photos" in error


def test_a_dry_run_of_one_run_does_nothing(rela: Rela, tmp_path: Path) -> None:
    done = rela("train", "dataset=fake", "runtime.dry_run=true", "resume=never", stub=NO_TORCH)
    assert (done.returncode, done.stderr) == (0, "")
    assert "to do" in done.stdout
    assert done.stdout.endswith("a dry run: nothing was done\n")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ((), "rela table"),
        (("paths.outputs=my runs",), "rela table --outputs 'my runs'"),
        (("paths.run=x/1.10", "paths.outputs=o"), "rela table x/1.10"),
    ],
)
def test_the_next_command_finds_the_run(words: tuple[str, ...], command: str) -> None:
    from types import SimpleNamespace

    from rela_cli.config.compose import compose
    from rela_cli.pipeline.screen import table_of

    assert table_of(SimpleNamespace(config=compose(words))) == command  # type: ignore[arg-type]


def test_numbers_are_repeated_where_nothing_is_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    from types import SimpleNamespace

    from rela_cli.pipeline.screen import show_stages
    from rela_cli.pipeline.to_do import StageState

    result = {
        "probe": {"knn": {"top1": 0.953, "network": "online"}},
        "baselines": {"untrained": {"knn": {"top1": 0.5}}},
    }
    run = SimpleNamespace(folder=Path("f"), result=result)
    show_stages(run, [StageState("probe", "cached", "knn")])  # type: ignore[arg-type]
    assert "  top-1  95.3 %  knn (online)  untrained 50.0\n" in capsys.readouterr().out
