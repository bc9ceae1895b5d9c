"""What a sweep would hand to Slurm, without Slurm: the batch script as submitit writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rela_cli.errors import ConfigError, first_line

SHARED_OPTIONS = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)
LAUNCHER_KEYS = ("_target_", "submitit_folder", "max_num_timeout")  # of the launcher, not of the script


def script(launcher: dict[str, Any], folder: Path, cells: int) -> str:
    """The text that `sbatch` would get for this many cells.

    Raises:
        ConfigError: submitit does not know a setting.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Dry(SlurmExecutor):
        """Needs no srun, since it starts nothing."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Dry(folder / ".submitit" / "%j", max_num_timeout=launcher.get("max_num_timeout", 0))
    values = {key: value for key, value in launcher.items() if value is not None and key not in LAUNCHER_KEYS}
    shared = executor._convert_parameters({key: values.pop(key) for key in SHARED_OPTIONS if key in values})
    try:
        executor._internal_update_parameters(**shared, **values)
    except ValueError as error:
        raise ConfigError(f"hydra/launcher: {first_line(error)}") from error
    if cells > 1:
        executor.parameters["map_count"] = cells
    return executor._make_submission_file_text(executor._submitit_command_str, "")
