"""Is there a network? Asked by a deadline, before a library that would retry for minutes."""

from __future__ import annotations

import threading
import urllib.error
from urllib.request import Request, urlopen

CONNECT_SECONDS = 3.0  # name look-up included: a socket's own timeout does not cover that


def unreachable(address: str) -> str | None:
    """Why a web address does not answer within CONNECT_SECONDS; None when it does. Proxies are respected."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=CONNECT_SECONDS).close()
            answer.append(None)
        except urllib.error.HTTPError:
            answer.append(None)  # it answered
        except Exception as error:
            answer.append(str(getattr(error, "reason", error)) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answer[0] if answer else f"no answer in {CONNECT_SECONDS:g} s"
