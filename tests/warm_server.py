"""The process that `warm` forks from: python -m tests.warm_server full|light SOCKET PID."""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.no_torch import NO_TORCH
from tests.warm import SERVER, Process, Request, emptied, run_module

OF_FEW = ("timm", "clip", "onnx", "from_transformers", "parquet", "bench", "__main__")
STARTERS = ("rela_cli.launch.processes", "rela_cli.commands.bench.memory")


def import_all(kind: str) -> None:
    """All that a run needs but the libraries of some priors; or what a command line needs until work begins.

    One config is composed, which a forked process then does in a fraction of the time.
    """
    if kind == "light":
        exec(NO_TORCH, {})
        import_module("rich.console")
        import_module("rela_cli.config.compose")
        import_module("rela_cli.launch.sweep")
    else:
        import rela_cli

        for found in pkgutil.walk_packages(rela_cli.__path__, "rela_cli."):
            if not any(part in OF_FEW for part in found.name.split(".")):
                import_module(found.name)
        import_module("rela_cli.commands.bench.memory")
    import_module("rela_cli.config.compose").compose()  # the yamls are read, Hydra has looked for its plugins
    gc.collect()
    gc.freeze()  # what is there is not looked through again, so that forked processes go on sharing it


def serve(listener: socket.socket, watched: int) -> None:
    """Fork what is asked for, and say what came of it, until the process `watched` (a pidfd) has ended."""
    children: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that shows their end
    while True:
        for ready in select.select([watched, listener, *children], [], [])[0]:
            if ready == watched:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                return
            if ready is listener:
                connection = listener.accept()[0]
                pid = fork(connection)
                children[os.pidfd_open(pid)] = pid, connection
            else:
                pid, connection = children.pop(ready)
                os.close(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                tell(connection, status)
                connection.close()


def tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # it does not care any more
        connection.sendall(number.to_bytes(8, "big", signed=True))


def fork(connection: socket.socket) -> int:
    size = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
    request = connection.recv(size, socket.MSG_WAITALL)
    pid = os.fork()
    if pid == 0:
        os.closerange(3, 1024)  # the sockets of other processes
        os._exit(status_of(pickle.loads(request)))
    tell(connection, pid)
    return pid


# --------------------------------------------------------------------------------------------- in the forked process


def status_of(request: Request) -> int:
    """What `python -m rela_cli WORDS` does up to its last breath, and the exit status."""
    status = 0
    try:
        prepare(request)
        if request.work:
            function, arguments = pickle.loads(request.work)
            function(*arguments)
        if request.words is not None:
            sys.argv = ["rela", *request.words]
            runpy.run_module("rela_cli", run_name="__main__", alter_sys=True)
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


def prepare(request: Request) -> None:
    """Be the process that was asked for: its folder, environment, output and paths."""
    os.setsid()
    os.chdir(request.folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in zip((1, 2), request.files, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    address = os.environ[SERVER]
    os.environ.clear()
    os.environ.update(request.env)
    own = [path for path in request.env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request.folder, *own, *(path for path in sys.path if path not in ("", *own))]
    tempfile.tempdir = None  # of the server's TMPDIR
    for starter in STARTERS:
        if starter in sys.modules:
            sys.modules[starter].subprocess = Forking(request.files, address)  # type: ignore[attr-defined]
    exec(request.stub, {"__name__": "sitecustomize"})


class Forking:
    """Stands for the module `subprocess` where rela starts rela: that is forked from this server as well."""

    def __init__(self, files: tuple[str, str], address: str) -> None:
        self.files, self.address = files, address

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: list[str], *, env: dict[str, str], stdout: Any = None, **_: object) -> Process:  # noqa: N802
        assert command[:3] == [sys.executable, "-m", "rela_cli"]
        files = (stdout.name, stdout.name) if stdout else self.files
        return Process(Request(str(Path.cwd()), env, tuple(command[3:]), files), self.address)

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        """`python -m MODULE WORDS` to its end, which has to be a good one."""
        assert command[:2] == [sys.executable, "-m"]
        work = pickle.dumps((run_module, (command[2], command[3:])))
        process = Process(Request(str(Path.cwd()), dict(os.environ), None, emptied(), work=work), self.address)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return subprocess.CompletedProcess(command, 0, out, err)


if __name__ == "__main__":
    pytest_process = os.pidfd_open(int(sys.argv[3]))
    import_all(sys.argv[1])
    with socket.socket(socket.AF_UNIX, fileno=int(sys.argv[2])) as listening:
        serve(listening, pytest_process)
    shutil.rmtree(Path(os.environ[SERVER]).parent, ignore_errors=True)
