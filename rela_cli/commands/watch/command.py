"""The command line of `rela watch`."""

from __future__ import annotations

import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rela_cli.commands.watch.state import Watcher
from rela_cli.config.arguments import Parser
from rela_cli.errors import ConfigError

SECONDS = 2.0  # between two looks of the terminal


def main(argv: Sequence[str]) -> int:
    """Follow the runs until Ctrl-C.

    Raises:
        ConfigError: a port that is taken, or none at all.
    """
    given = parser().read(argv)
    outputs = given.path or given.outputs
    if not (outputs / "runs").is_dir():
        print(f"rela: there are no runs in {outputs} yet; they will appear here", file=sys.stderr)
    watcher = Watcher(outputs)
    if given.text:
        return in_terminal(watcher)
    return in_browser(watcher, given.port, given.open)


def parser() -> Parser:
    """The command line."""
    made = Parser(
        "watch",
        "Serves a page that follows the runs of this machine: progress, curves, failures, and the table as it fills.",
        ["rela watch", "rela watch --text", "rela watch other/outputs --port 8600   # for ssh -L 8600:127.0.0.1:8600"],
    )
    made.add("path", nargs="?", type=Path, metavar="PATH", help="an outputs folder (default: outputs)")
    made.add_outputs()
    made.add("--text", action="store_true", help="show the runs in this terminal, without a browser")
    made.add("--port", type=port, default=0, help="the port on 127.0.0.1 (default: any that is free)")
    made.add("--open", action="store_true", help="open the page in this machine's browser")
    return made


def port(text: str) -> int:
    """A type for argparse."""
    if not text.isdigit() or not 0 <= int(text) < 2**16:
        raise ConfigError(f"--port={text} must be a number from 0 to 65535; 0 takes any that is free")
    return int(text)


def in_browser(watcher: Watcher, port: int, opens: bool) -> int:
    """Print the page's address and serve it until Ctrl-C."""
    from rela_cli.commands.watch.server import Server

    try:
        server = Server(watcher, port)
    except OSError as error:
        raise ConfigError(f"--port={port} cannot be used ({error.strerror}); leave --port out to take any") from error
    print(f"{server.address}\nfollows {watcher.outputs}; Ctrl-C ends it", flush=True)
    if opens:
        webbrowser.open(server.address)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


def in_terminal(watcher: Watcher) -> int:
    """Draw the runs every two seconds; once where there is no terminal."""
    from rich.live import Live

    from rela_cli.commands.watch.text import drawn
    from rela_cli.report.grids.screen import Screen

    console = Screen()
    if not console.is_terminal:
        console.print(drawn(watcher.state(), console.width, rows=None))
        return 0
    try:
        with Live(
            drawn(watcher.state(), console.width, console.height), console=console, screen=True, auto_refresh=False
        ) as live:
            while True:
                time.sleep(SECONDS)
                live.update(drawn(watcher.state(), console.width, console.height), refresh=True)
    except KeyboardInterrupt:
        return 0
