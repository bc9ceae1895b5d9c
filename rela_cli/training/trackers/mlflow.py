"""MLflow: a server, or a database in the outputs folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_cli.config.reading import to_tree
from rela_cli.config.schema import Config
from rela_cli.store.files import write_atomic
from rela_cli.store.notices import warn
from rela_cli.store.secrets import redact
from rela_cli.terminal import printable
from rela_cli.training.trackers.base import numeric_values

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_VALUE = 6000  # characters of a parameter that MLflow takes
ID = "mlflow.id"


class Mlflow:
    """One run in the experiment `logger.project`. Its parameters are the config's keys.

    Nothing is asked of a server before the first record: a server that does not answer then holds up only the
    tracker's thread.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.client: MlflowClient | None = None
        self.run = ""

    def log(self, record: dict[str, Any]) -> None:
        """Send the numbers of a record in one call."""
        from mlflow.entities import Metric

        client = self.opened()
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, record["step"]) for name, value in numeric_values(record).items()]
        client.log_batch(self.run, metrics=metrics)

    def finish(self, succeeded: bool) -> None:
        """Mark the run as finished or failed."""
        self.opened().set_terminated(self.run, "FINISHED" if succeeded else "FAILED")

    def opened(self) -> MlflowClient:
        """The client, after the run was made there or found again."""
        if self.client is None:
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=tracking_uri(self.config))
            self.run = self.known(client) or self.made(client)
            self.client = client
        return self.client

    def known(self, client: MlflowClient) -> str | None:
        """The id that this run folder has there, so that a resumed run stays one run; None if there is none of it.

        Raises:
            MlflowException: the server fails; it is not asked for a second run then.
        """
        from mlflow.exceptions import MlflowException

        path = self.folder / ID
        if not path.exists():
            return None
        run = path.read_text(encoding="utf-8").strip()
        try:
            client.update_run(run, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            warn(f"mlflow has no run {run} any more (deleted, or another server): a new one begins there")
            return None
        return run

    def made(self, client: MlflowClient) -> str:
        """The id of a new run, written down in the run's folder."""
        from mlflow.entities import Param

        project = self.config.logger.project
        found = client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else client.create_experiment(project)
        run = str(client.create_run(experiment, run_name=printable(self.folder.name)).info.run_id)
        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in leaves_of(redact(to_tree(self.config)))]
        for start in range(0, len(params), 100):  # MLflow takes 100 in a call
            client.log_batch(run, params=params[start : start + 100])
        write_atomic(self.folder / ID, lambda temporary: temporary.write_text(run, encoding="utf-8"))
        return run


def tracking_uri(config: Config) -> str:
    """logger.uri, else $MLFLOW_TRACKING_URI, else a database in the outputs folder."""
    local = f"sqlite:///{Path(config.paths.outputs).absolute() / 'mlflow.db'}"
    return config.logger.uri or os.environ.get("MLFLOW_TRACKING_URI") or local


def leaves_of(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of every leaf."""
    leaves: list[tuple[str, Any]] = []
    for name, value in tree.items():
        inner = isinstance(value, dict) and value
        leaves += leaves_of(value, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", value)]
    return leaves
