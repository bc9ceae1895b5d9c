"""What a run writes down beside its folder."""

from __future__ import annotations

from pathlib import Path

from rela_cli.pipeline.run_record import point_latest


def test_latest_is_the_run_that_has_finished_last(tmp_path: Path) -> None:
    for name in ("first", "second", "first"):
        (tmp_path / name).mkdir(exist_ok=True)
        point_latest(tmp_path / name)
        assert (tmp_path / "latest").resolve() == (tmp_path / name).resolve()


def test_a_folder_that_is_called_latest_stays(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    point_latest(tmp_path / "first")
    assert (tmp_path / "latest").is_dir() and not (tmp_path / "latest").is_symlink()
