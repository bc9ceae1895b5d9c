"""`rela ...` in processes that are forked from one which has imported everything: a fifth of a second instead of six.

They are processes like any other: they can be killed, stopped and waited for. Two things differ from a fresh one: its
modules are there already, and `ps` shows another command. There are two servers, which all workers of one pytest share:
"full" has torch and all that a run needs, "light" has Hydra and dies if anything imports torch meanwhile. Tests of what
is imported at the start take fresh processes.
"""

from __future__ import annotations

import os
import pickle
import runpy
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

ROOT = Path(__file__).parent.parent
READ_AT_IMPORT = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "LD_", "HF_HUB", "HF_HOME", "TORCH")
SERVER = "RELA_TEST_SERVER"  # names the socket, for processes that start others
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid4().hex
HOME = Path(os.environ.get(SERVER) or f"{tempfile.gettempdir()}/rela-test-{RUN}/full").parent  # gone when pytest ends


@dataclass(frozen=True)
class Request:
    """What a server is asked to fork: `rela WORDS`, or `work` alone if there are no words."""

    folder: str
    env: dict[str, str]
    words: tuple[str, ...] | None
    files: tuple[str, str]  # stdout and stderr
    stub: str = ""  # Python that runs before anything else
    work: bytes = b""  # a pickled (function, arguments), called before the command


def suits(env: Mapping[str, str]) -> bool:
    """Whether these variables can still be set once Python and torch have been imported."""
    return not any(name.startswith(READ_AT_IMPORT) for name in env if env[name] != os.environ.get(name))


@cache
def server(kind: str) -> str:
    """The address of a server that has begun to import; whichever worker asks first starts it."""
    HOME.mkdir(mode=0o700, exist_ok=True)
    address = HOME / kind
    with FileLock(HOME / f"{kind}.lock"):
        if not address.exists():
            start_server(kind, str(address))
    return str(address)


def start_server(kind: str, address: str) -> None:
    """A server that lives as long as pytest: the process that has started the workers, or else this one."""
    watched = os.getppid() if IS_WORKER else os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        number = listener.fileno()
        command = [sys.executable, "-m", "tests.warm_server", kind, str(number), str(watched)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), SERVER: address}
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, pass_fds=[number]))


started: list[subprocess.Popen[bytes]] = []  # which are not waited for: they outlive their worker


class Process:
    """A forked process, with the interface of a subprocess.Popen; what it writes lies in `files`."""

    def __init__(self, request: Request, address: str) -> None:
        self.args = ("rela", *(request.words or ()))
        self.files = request.files
        self.returncode: int | None = None
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(address)
        data = pickle.dumps(request)
        self._server.sendall(len(data).to_bytes(8, "big") + data)
        self.pid = self._number()

    def _number(self) -> int:
        data = self._server.recv(8, socket.MSG_WAITALL)
        assert len(data) == 8, "the server of the tests has died"
        return int.from_bytes(data, "big", signed=True)

    def poll(self) -> int | None:
        return self._ended(0)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            self.returncode = self._number()
            self._server.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (Path(name).read_text(errors="replace") for name in self.files)
        return out, err

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)


def start(
    folder: Path,
    *words: str,
    env: Mapping[str, str],
    files: tuple[Path, Path] | None = None,
    stub: str = "",
    before: Callable[[], object] | None = None,
    kind: str = "full",
) -> Process:
    """`rela WORDS` in `folder`; stdout and stderr in `files`, or in temporary ones."""
    work = pickle.dumps((before, ())) if before else b""
    return Process(Request(str(folder), dict(env), words, emptied(files), stub, work), server(kind))


def emptied(files: tuple[Path, Path] | None = None) -> tuple[str, str]:
    """The names of two empty files, temporary ones unless there are some."""
    if files is None:
        HOME.mkdir(mode=0o700, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=HOME))
        files = place / "out", place / "err"
    for path in files:
        path.write_text("")
    return str(files[0]), str(files[1])


def run(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """`rela WORDS` to its end."""
    process = start(folder, *words, **more)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def run_module(name: str, words: list[str]) -> None:
    """What `python -m NAME WORDS` does; called in a forked process."""
    sys.argv = [name, *words]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def call(
    function: Callable[..., object], *arguments: object, folder: Path | None = None, env: Mapping[str, str] = os.environ
) -> Process:
    """A function of a test in a process of its own, in `folder` or else here."""
    work = pickle.dumps((function, arguments))
    return Process(Request(str(folder or Path.cwd()), dict(env), None, emptied(), work=work), server("full"))
