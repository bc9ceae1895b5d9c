"""Archives appear whole or not at all, whoever else is at it and whatever is killed."""

from __future__ import annotations

import io
import signal
import zipfile
from pathlib import Path

import pytest

from rela_cli.data.files.archives import count, unpack_one
from rela_cli.errors import MissingError
from tests.promises.helpers import python, wait_until

FILES = 600
UNPACK = """
from rela_cli.data.files.archives import unpack_one
print("begun", flush=True)
unpack_one(Path(sys.argv[1]), Path(sys.argv[2]))
print(len(list(Path(sys.argv[2]).rglob("*.txt"))), flush=True)
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip of one folder with many files."""
    path = tmp_path / "things.zip"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(FILES):
            file.writestr(f"things/{i % 7}/{i}.txt", "x" * 100)
    return path


def test_killed_while_it_unpacks(archive: Path, tmp_path: Path) -> None:
    """What is half there is not the folder; the next one starts anew, and nothing of the first is left."""
    folder, part = tmp_path / "things", tmp_path / ".things.part"
    process = python(UNPACK, archive, folder)
    wait_until(lambda: list(part.glob("things/*/*5.txt")) or folder.exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not folder.exists():  # on a fast disk it was done before
        assert part.exists()
    unpack_one(archive, folder)
    assert len(list(folder.rglob("*.txt"))) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["things", "things.zip"]


def test_four_at_once(archive: Path, tmp_path: Path) -> None:
    """One unpacks, the others wait and find it."""
    processes = [python(UNPACK, archive, tmp_path / "things") for _ in range(4)]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert out.split() == ["begun", str(FILES)], error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["things", "things.zip"]


def test_a_file_that_did_not_come_out_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    count(tmp_path / "x.tar", tmp_path, [("a.txt", 3)])
    for members in ([("a.txt", 4)], [("a.txt", 3), ("b.txt", 0)]):
        with pytest.raises(MissingError, match="was not unpacked whole"):
            count(tmp_path / "x.tar", tmp_path, members)


def test_another_archive_under_its_name(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("others/x.txt", "x")
    (tmp_path / "things.zip").write_bytes(data.getvalue())
    with pytest.raises(MissingError, match="holds no folder things"):
        unpack_one(tmp_path / "things.zip", tmp_path / "things")
    assert not (tmp_path / "things").exists() and not (tmp_path / ".things.part").exists()
