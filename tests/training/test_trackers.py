"""Each tracker's records are read back with the tracker's own library; no tracker can change or fail a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rela_cli.errors import ConfigError
from rela_cli.training.trackers import run as trackers
from rela_cli.training.trackers.run import open_trackers
from tests.factories import config
from tests.promises.helpers import WORDS

RECORDS: list[dict[str, Any]] = [
    {"step": 4, "epoch": 1, "phase": 1, "loss": 0.5, "rho": None, "lr": 1e-3},
    {"step": 8, "epoch": 2, "phase": 2, "loss": 0.25, "rho": None, "lr": 1e-3},
]
SECRET = "not-for-anybody"


def track(folder: Path, *words: str, records: list[dict[str, Any]] = RECORDS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open_trackers(config(*WORDS, f"paths.outputs={folder.parent}", *words), folder) as put:
        for record in records:
            put(record)


# ---------------------------------------------------------------------------------------------------------- tensorboard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: {name: [(step, value)]}."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    track(tmp_path / "run", "logger=tensorboard")
    seen = scalars(tmp_path / "run")
    assert seen["loss"] == [(4, 0.5), (8, 0.25)]
    assert seen["phase"] == [(4, 1), (8, 2)]
    assert "rho" not in seen, "null is no number"


def test_a_resumed_run_hides_the_points_of_the_part_that_was_lost(tmp_path: Path) -> None:
    lost = [*RECORDS, {"step": 12, "loss": 9.0}]
    track(tmp_path / "run", "logger=tensorboard", records=lost)
    track(tmp_path / "run", "logger=tensorboard", records=[{"step": 8, "loss": 0.125}])
    assert scalars(tmp_path / "run")["loss"] == [(4, 0.5), (8, 0.125)]


def test_no_secret_reaches_the_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    track(tmp_path / "run", "logger=tensorboard", f"logger.uri=http://user:{SECRET}@tracker/x")
    (written,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"tracker/x" in written.read_bytes()
    assert SECRET.encode() not in written.read_bytes()


# --------------------------------------------------------------------------------------------------------------- mlflow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as MLflow's store: a database needs its full package, and takes seconds to make."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path / 'store'}"


def test_mlflow_reads_what_was_written(tmp_path: Path, store: str) -> None:
    track(tmp_path / "run", "logger=mlflow", f"logger.uri={store}", "logger.project=mine")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(4, 0.5), (8, 0.25)]
    assert found.data.params["budget"] == "0.5"
    assert found.data.params["method.name"] == "simclr"
    assert found.info.run_id == (tmp_path / "run" / "mlflow.id").read_text()


def test_a_run_that_fails_and_goes_on_stays_one_run_in_mlflow(tmp_path: Path, store: str) -> None:
    words = ("logger=mlflow", f"logger.uri={store}")
    (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt), open_trackers(config(*WORDS, *words), tmp_path / "run") as put:
        put(RECORDS[0])
        raise KeyboardInterrupt
    from mlflow import MlflowClient

    run = (tmp_path / "run" / "mlflow.id").read_text()
    client = MlflowClient(tracking_uri=store)
    assert client.get_run(run).info.status == "FAILED"
    track(tmp_path / "run", *words, records=RECORDS[1:])
    assert client.get_run(run).info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run, "loss")] == [4, 8]


def test_a_run_that_was_deleted_begins_anew_which_is_said(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("logger=mlflow", f"logger.uri={store}")
    track(tmp_path / "run", *words)
    (tmp_path / "run" / "mlflow.id").write_text("0" * 32)
    track(tmp_path / "run", *words)
    assert f"rela: mlflow has no run {'0' * 32} any more" in capsys.readouterr().err
    assert (tmp_path / "run" / "mlflow.id").read_text() != "0" * 32


def test_a_server_that_is_not_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track(tmp_path / "run", "logger=mlflow", "logger.uri=http://127.0.0.1:9")
    assert capsys.readouterr().err.count("rela: mlflow stopped working") == 1


def test_a_part_of_mlflow_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "sqlalchemy" else find_spec(name))
    track(tmp_path / "run", "logger=mlflow")
    assert "rela: mlflow-skinny has no database (pip install 'rela-cli[mlflow]' brings it" in capsys.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()


# -------------------------------------------------------------------------------------------------------------- trackio


def test_trackio_reads_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    track(tmp_path / "run", "logger=trackio", "logger.project=mine")
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("mine", "run")
    assert [(log["step"], log["loss"]) for log in logs] == [(4, 0.5), (8, 0.25)]
    assert capsys.readouterr().out == "", "stdout carries the results of rela"


# ---------------------------------------------------------------------------------------------------------- all of them


class Kept:
    """A service that keeps what it gets."""

    def __init__(self, *_: object) -> None:
        self.records: list[dict[str, Any]] = []
        self.succeeded: bool | None = None

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def finish(self, succeeded: bool) -> None:
        self.succeeded = succeeded


class Broken(Kept):
    def log(self, record: dict[str, Any]) -> None:
        raise ConnectionError("gone\nwith details")


def test_several_trackers_get_every_record_though_one_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"tensorboard": Kept(), "mlflow": Broken(), "wandb": Kept()}
    monkeypatch.setattr(trackers, "open_service", lambda name, *_: kept[name])
    track(tmp_path / "run", "logger=[mlflow,tensorboard,wandb]")
    for name in ("tensorboard", "wandb"):
        assert kept[name].records == RECORDS
        assert kept[name].succeeded is True
    assert capsys.readouterr().err == "rela: mlflow stopped working (gone); metrics.jsonl has everything\n"


def test_a_run_that_fails_is_told_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setattr(trackers, "open_service", lambda *_: kept)
    with pytest.raises(OSError, match="disk"), open_trackers(config(*WORDS, "logger=tensorboard"), tmp_path):
        raise OSError("disk")
    assert kept.succeeded is False


def test_a_library_that_is_missing_is_named_with_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    track(tmp_path / "run", "logger=[tensorboard,mlflow,trackio]")
    error = capsys.readouterr().err
    for name in ("tensorboard", "mlflow", "trackio"):
        assert f"rela: {name} is not installed (pip install 'rela-cli[{name}]' brings it)" in error


def test_names_of_trackers() -> None:
    assert config("logger=[wandb,tensorboard]").logger.trackers == ["wandb", "tensorboard"]
    assert config("logger=[none,mlflow]").logger.trackers == ["mlflow"]
    assert config().logger.trackers == []
    with pytest.raises(ConfigError, match=r"unknown logger tensorbord.*tensorboard"):
        config("logger=[wandb,tensorbord]")


def test_a_tracker_is_no_part_of_what_a_run_is() -> None:
    from rela_cli.pipeline.run import Run

    one, other = (Run(config(*WORDS, *words)) for words in ((), ("logger=[tensorboard,mlflow]",)))
    assert one.folder == other.folder
