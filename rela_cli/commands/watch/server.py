"""The page of `rela watch`, served on 127.0.0.1 alone.

Every address begins with a random token, so another user of the machine cannot read the page. A page of another site
cannot either: requests that come from one, or that use another host name, are refused, and no answer may be embedded.
Only GET is answered, and only the addresses below; nothing in a request names a file.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import threading
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rela_cli.commands.watch.state import Watcher
from rela_cli.errors import RelaError
from rela_cli.report.page import page
from rela_cli.report.page.html import grids_html
from rela_cli.report.results.collect import collect
from rela_cli.report.results.comparison import protocols_of, results_of
from rela_cli.report.tables.tables import Parts, grids_of, notes_of

PAGE_FOLDER = Path(__file__).parent
HOSTS = ("127.0.0.1", "localhost", "::1")
OWN_SITES = ("same-origin", "none")  # what Sec-Fetch-Site says of our page, and of an address that was typed
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Answer = tuple[str, bytes]  # content type, body


class Server(ThreadingHTTPServer):
    """`address` is what a browser opens."""

    daemon_threads = True

    def __init__(self, watcher: Watcher, port: int) -> None:
        self.watcher, self.token = watcher, secrets.token_urlsafe(16)
        self.table = LiveTable(watcher)
        super().__init__(("127.0.0.1", port), PageHandler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""

    def answers(self) -> dict[str, Callable[[dict[str, list[str]]], Answer | None]]:
        """Each address, without the token, and what answers it."""
        return {
            "": lambda _: text_file("page.html"),
            "watch.js": lambda _: text_file("watch.js"),
            "page.css": lambda _: ("text/css", page.CSS.encode()),
            "watch.css": lambda _: text_file("watch.css"),
            "state.json": lambda _: json_answer(self.watcher.state()),
            "curve.json": self.curve,
            "table.html": lambda _: ("text/html", self.table.html().encode()),
        }

    def curve(self, query: dict[str, list[str]]) -> Answer | None:
        """The curve of the run named."""
        found = self.watcher.curve(query.get("run", [""])[0])
        return None if found is None else json_answer(found)


class PageHandler(BaseHTTPRequestHandler):
    """Checks who asks, then answers."""

    server: Server

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        token, _, name = address.path.removeprefix("/").partition("/")
        answer = self.server.answers().get(name)
        if not self.is_own() or not hmac.compare_digest(token.encode(), self.server.token.encode()) or answer is None:
            return self.send(HTTPStatus.NOT_FOUND, ("text/plain", b"not found\n"))
        found = answer(parse_qs(address.query))
        if found is None:
            return self.send(HTTPStatus.NOT_FOUND, ("text/plain", b"no such run\n"))
        return self.send(HTTPStatus.OK, found)

    def is_own(self) -> bool:
        """Whether the request names this machine and comes from our own page, or from nowhere."""
        host = urlsplit(f"//{self.headers.get('Host', '')}")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        return host.hostname in HOSTS and site in OWN_SITES and origin in (None, f"http://{host.netloc}")

    def send(self, status: HTTPStatus, answer: Answer) -> None:
        kind, body = answer
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the address alone."""


class LiveTable:
    """`rela table` of the finished runs as HTML, made anew when one of them has changed."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.lock = watcher, threading.Lock()
        self.of: tuple[Any, ...] | None = None
        self.made = ""

    def html(self) -> str:
        """The table, or why there is none yet."""
        with self.lock:
            of = self.watcher.finished()
            if of != self.of:
                self.of, self.made = of, table_html(self.watcher.outputs)
            return self.made


def table_html(outputs: Path) -> str:
    """The grids of `rela table`."""
    problems: list[str] = []
    try:
        results = results_of(collect([outputs], problems))
        grids = grids_of(results, protocols_of(results), Parts())
    except RelaError as error:
        return f"<p class=note>{escape(str(error))}</p>"
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in (*notes_of(results), *problems))
    return grids_html(grids) + notes


def text_file(name: str) -> Answer:
    """A file of the page."""
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
    return kinds[Path(name).suffix], (PAGE_FOLDER / name).read_bytes()


def json_answer(value: Any) -> Answer:
    """A value, without what JSON does not know: a loss may be nan."""
    return "application/json", json.dumps(finite(value)).encode()


def finite(value: Any) -> Any:
    """nan and infinity as null: a browser's JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
