"""Which trackers a run has, and how records reach them. No tracker can fail a run: it warns once, and the run goes on.

Secrets never come from the config, and what looks like a secret is left out of what is sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

from rela_cli.config.schema import Config
from rela_cli.errors import first_line
from rela_cli.store.notices import warn
from rela_cli.training.trackers.base import Record, Service

FINISH_SECONDS = 30.0  # how long a run that is done waits for its trackers, all together


@contextmanager
def open_trackers(config: Config, folder: Path) -> Iterator[Callable[[Record], None]]:
    """A function that takes a record of metrics, until the training is over."""
    services = {name: open_service(name, config, folder) for name in config.logger.trackers}
    trackers = [Tracker(name, service) for name, service in services.items() if service]
    succeeded = False

    def put(record: Record) -> None:
        for tracker in trackers:
            tracker.put(record)

    try:
        yield put
        succeeded = True
    finally:
        close(trackers, succeeded)


def open_service(name: str, config: Config, folder: Path) -> Service | None:
    """The run in the tracker `name`; None, with a warning, if there can be none."""
    if name == "wandb":
        from rela_cli.training.trackers.wandb import open_wandb

        return open_wandb(config, folder)
    how = f"pip install 'rela-cli[{name}]'"
    if find_spec(name) is None:
        warn(f"{name} is not installed ({how} brings it): metrics.jsonl has everything")
        return None
    if name == "mlflow" and needs_whole_package(config):
        warn(
            f"mlflow-skinny has no database ({how} brings it; or say logger.uri=ADDRESS): metrics.jsonl has everything"
        )
        return None
    return _others()[name](config, folder)


def needs_whole_package(config: Config) -> bool:
    """Whether MLflow would write to a database, which mlflow-skinny, a part of it, cannot."""
    from rela_cli.training.trackers.mlflow import tracking_uri

    return tracking_uri(config).startswith("sqlite:") and find_spec("sqlalchemy") is None


def _others() -> dict[str, Callable[[Config, Path], Service]]:
    from rela_cli.training.trackers.mlflow import Mlflow
    from rela_cli.training.trackers.tensorboard import Tensorboard
    from rela_cli.training.trackers.trackio import Trackio

    return {"mlflow": Mlflow, "tensorboard": Tensorboard, "trackio": Trackio}


class Tracker:
    """Hands records on from a thread of its own, so that a service that fails or hangs does not hold up the run."""

    def __init__(self, name: str, service: Service) -> None:
        self.name, self.service = name, service
        self.records, self.succeeded = SimpleQueue[Record | None](), False
        self.thread = threading.Thread(target=self.work, daemon=True, name=f"rela-{name}")
        self.thread.start()

    def put(self, record: Record) -> None:
        """Queue a record; returns at once."""
        self.records.put(record)

    def work(self) -> None:
        """Send all records, then the end. The first failure is the last: it is said once."""
        try:
            while (record := self.records.get()) is not None:
                self.service.log(record)
            self.service.finish(self.succeeded)
        except Exception as error:
            warn(f"{self.name} stopped working ({first_line(error)}); metrics.jsonl has everything")

    def end(self, succeeded: bool) -> None:
        """Queue the end; returns at once."""
        self.succeeded = succeeded
        self.records.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until everything is sent, at most `seconds`."""
        self.thread.join(max(0.0, seconds))
        if self.thread.is_alive():
            warn(f"{self.name} did not finish within {FINISH_SECONDS:g} s; metrics.jsonl has everything")


def close(trackers: list[Tracker], succeeded: bool) -> None:
    """End all trackers, and wait for them together."""
    until = time.monotonic() + FINISH_SECONDS
    for tracker in trackers:
        tracker.end(succeeded)
    for tracker in trackers:
        tracker.wait(until - time.monotonic())
