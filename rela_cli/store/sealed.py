"""JSON that knows its own hash: an object carries a sha256 over all else in it, so a single changed bit is noticed.

The hash is over the values and not over the bytes, so a file may be laid out anew. Files of older versions, and files
made by hand, carry none; who reads them decides what that means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

Facts = dict[str, Any]
SEAL = "own_sha256"
DEEPEST_LEVEL = 64  # levels; what we write has about ten
BY_HAND = f'if it was changed by hand, take the line "{SEAL}" out of it'


class Damaged(ValueError):
    """A file does not hold what was written into it; the message says why, without naming the file."""


def sealed(facts: Facts) -> Facts:
    """The facts as JSON holds them (tuples become lists), with their hash.

    Raises:
        TypeError: something in them is no JSON.
    """
    body: Facts = json.loads(json.dumps({key: value for key, value in facts.items() if key != SEAL}, default=list))
    return {**body, SEAL: _own_digest(body)}


def unsealed(text: str | bytes) -> tuple[Facts, bool]:
    """The facts of a JSON text without their hash, and whether they carried one.

    Raises:
        Damaged: no JSON object, or its hash is not that of the rest.
    """
    facts = parsed(text)
    if not isinstance(facts, dict):
        raise Damaged("it holds no JSON object")
    seal = facts.pop(SEAL, None)
    if seal is not None and seal != _own_digest(facts):
        raise Damaged("it does not hold what was written: its own sha256 differs")
    return facts, seal is not None


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Damaged: it is none, is not UTF-8, or is nested too deeply.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"it holds no JSON: {error}") from error
    return shallow(value)


def shallow(value: Any) -> Any:
    """The value, after a check that its nesting is shallow enough for a recursive walk.

    Raises:
        Damaged: it is nested too deeply.
    """
    level = [value]
    for _ in range(DEEPEST_LEVEL):
        level = [inner for one in level if isinstance(one, dict | list) for inner in _inside(one)]
        if not level:
            return value
    raise Damaged("it is nested too deeply")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def parsed_yaml(content: bytes) -> Facts:
    """The mapping of a YAML file.

    Raises:
        Damaged: it is none, is not UTF-8, or is nested too deeply.
    """
    import yaml

    try:
        tree = yaml.safe_load(content.decode())
    except RecursionError:
        raise Damaged("it is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise Damaged(f"it is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise Damaged("it holds no mapping")
    mapping: Facts = shallow(tree)
    return mapping


def _own_digest(body: Facts) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
