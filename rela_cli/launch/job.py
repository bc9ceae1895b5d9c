"""One run as Hydra calls it. Picklable, so that a launcher can send it to another process."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli.config.overrides import CommandLine
from rela_cli.config.trees import config_of
from rela_cli.distributed import ranks
from rela_cli.errors import RelaError, is_full
from rela_cli.store.files import read_json, write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from rela_cli.config.schema import Config
    from rela_cli.pipeline.pipeline import Outcome

UNTIL = {"train": "probe", "extract": "extract", "transport": "transport", "probe": "probe"}


@dataclass(frozen=True)
class Job:
    """What every cell of a call has in common."""

    command: str
    line: CommandLine

    def run(self, tree: DictConfig, overrides: Sequence[str]) -> Outcome:
        """Validate a composed tree and work through the stages. torch is imported here and not before."""
        self.line.open_imports()  # a launcher may have sent this to a process of its own
        config = config_of(tree, overrides)
        from rela_cli.launch import judge, rank_processes, room

        is_judged = UNTIL[self.command] == "probe" and ranks.world() == 1 and not config.runtime.dry_run
        judged_on = judge.at_the_end(config, self.line, overrides) if is_judged else []
        try:
            outcome = self.made(config, overrides)
            for line in judged_on:
                assert outcome.folder is not None
                judge.judging_of_run(outcome.folder.resolve(), line, self.text(overrides)).judge()
        except Exception as error:
            rank_processes.note_full(error)
            raise
        finally:
            room.note()
        return outcome

    def made(self, config: Config, overrides: Sequence[str]) -> Outcome:
        """Work through the stages, in this process or in several."""
        from rela_cli.launch import rank_processes
        from rela_cli.pipeline import pipeline

        until = UNTIL[self.command]
        alone = ranks.world() == 1 and not config.runtime.dry_run
        if config.runtime.devices > 1 and alone and (folder := pipeline.folder_with_work(config, until)):
            try:
                rank_processes.run_ranks(self.command, self.words(overrides), config)
            except RelaError as error:
                correct_manifest(folder, error)
                raise
            return pipeline.Outcome("run", folder)
        return pipeline.run(config, until=until, command=self.text(overrides))

    def words(self, overrides: Sequence[str]) -> list[str]:
        """The command line of this run alone."""
        return [*overrides, *(f"{k}={v}" for k, v in self.line.flags.items() if k.startswith("--config-"))]

    def text(self, overrides: Sequence[str]) -> str:
        """The command that repeats this run alone."""
        return shlex.join(["rela", self.command, *self.words(overrides)])


def correct_manifest(folder: Path, error: RelaError) -> None:
    """Say in it that a GPU was full: of a run of several processes the first says that it lost touch with one."""
    manifest = read_json(folder / "manifest.json")
    if manifest and is_full(error):
        write_json(folder / "manifest.json", {**manifest, "status": "failed", "reason": str(error)})


@dataclass
class Single:
    """Hydra's task for one run. It keeps its error: Hydra would print a line of its own about it."""

    job: Job
    error: Exception | None = field(default=None, init=False)

    def __call__(self, tree: DictConfig) -> None:
        try:
            self.job.run(tree, self.job.line.overrides)
        except Exception as error:
            self.error = error
