"""Keys, tokens and passwords do not get into files, logs or trackers, wherever they come from.

What counts as one: the text under a key or in an environment variable whose name ends like a secret's, credentials in
a URL, and tokens of well-known shapes. Fingerprints are made before this, so a redacted file still finds its run.
"""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
SECRET_WORDS = r"(?:token|secret|passw(?:or)?d|api_?key|access_?key|secret_?key|private_?key|credentials?)"
SECRET_NAME = re.compile(rf"(?:^|[_.\-]|[a-z]){SECRET_WORDS}$", re.IGNORECASE)
ASSIGNED = re.compile(
    rf"""([\w.\-]*{SECRET_WORDS}=)(?!(?:true|false|null|None|[-\d.]+)\b)("[^"]*"|'[^']*'|[^\s,;&"'\])}}]+)""",
    re.IGNORECASE,
)
IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
SHAPES = re.compile(r"\b(?:hf_\w{20,}|gh[pousr]_\w{30,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,})")
SHORTEST = 8  # characters: a shorter value from the environment would blot out ordinary words


def redact(value: Any) -> Any:
    """Replace every secret in a tree or text by ***."""
    return _walked(value, _from_environment())


def _walked(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {k: _hidden(v) if SECRET_NAME.search(str(k)) else _walked(v, known) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_walked(item, known) for item in value]
    return _without_secrets(value, known) if isinstance(value, str) else value


def _hidden(value: Any) -> Any:
    """All text below a secret's key; numbers and flags are settings (`class_token: true`)."""
    if isinstance(value, dict):
        return {key: _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(inner) for inner in value]
    return HIDDEN if isinstance(value, str) and value else value


def _without_secrets(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, HIDDEN)
    text = ASSIGNED.sub(rf"\g<1>{HIDDEN}", text)
    return SHAPES.sub(HIDDEN, IN_URL.sub(HIDDEN, text))


def _from_environment() -> list[str]:
    """Values of secret-looking variables, longest first, so that none hides a part of another."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
