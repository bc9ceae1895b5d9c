"""Keys that hold text keep what was typed.

Hydra reads 2024_11_28 as the number 20241128, 1.10 as 1.1 and 1e3 as 1000.0, and it cannot read names such as фото,
~/photos or epoch=3.ckpt. So the value of a key that holds text is quoted before Hydra reads it, wherever Hydra would
make something else of it. What the grammar says on purpose stays: quotes, null, ${...}, lists, choice(...), escapes.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from rela_cli.config.options import OPTIONS
from rela_cli.config.schema import GROUPS, Card, Config, Part

CALL = re.compile(r"(choice|sort|shuffle|tag)\((.*)\)", re.DOTALL)  # their arguments are the values themselves
OTHER_CALL = re.compile(r"(range|interval|glob|int|float|str|bool|json_str|extend_list)\(.*\)", re.DOTALL)
ESCAPED = re.compile(r"\\[\\()\[\]{}:=, \t]")


def as_typed(word: str, is_text: Callable[[str], bool]) -> str:
    """An override as Hydra has to be given it, so that a key of text gets the text that was typed.

    `is_text` says of a key that the schema does not know, such as one of somebody's own part, whether text stands there
    by default. It may mean a number, too, so there a number that is written as Python would write it stays one.
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+").partition("@")[0]
    if not equals or key.startswith("~"):
        return word
    known = holds_text(name)
    if known is None:
        typed = quoted_values(value, is_plain_number)
        return f"{key}={typed}" if typed != value and is_text(name) else word
    return f"{key}={quoted_values(value)}" if known else word


def quoted_values(value: str, stays: Callable[[str], bool] = lambda value: False) -> str:
    """One value, or several with commas between them, each quoted where it has to be and does not stay as it is."""
    parts = split_words(value)
    return (
        ",".join(quoted_value(part.strip(), stays) for part in parts) if len(parts) > 1 else quoted_value(value, stays)
    )


def quoted_value(value: str, stays: Callable[[str], bool]) -> str:
    """A value in Hydra's grammar that stands for the text `value`."""
    stripped = value.strip()
    if call := CALL.fullmatch(stripped):
        return f"{call[1]}({quoted_values(call[2].strip(), stays)})"
    if stripped[:1] == "[" and stripped[-1:] == "]":
        return f"[{quoted_values(stripped[1:-1].strip(), stays)}]"
    if stripped[:1] in "'\"{[" or "${" in value or stripped.lower() == "null" or OTHER_CALL.fullmatch(stripped):
        return value  # all of these say what they mean; an empty value is empty text
    return value if stays(value) or _is_read_as(value) else quote(value)


def quote(text: str) -> str:
    """Any text in Hydra's quotes."""
    return QuotedString(text, Quote.single).with_quotes()


def quoted_if_needed(text: str) -> str:
    """Any text as the value of an override: as it is, or in quotes where Hydra would read something else."""
    return text if _read_by_hydra(text) == text else quote(text)


def is_plain_number(value: str) -> bool:
    """Whether Hydra reads a number here that is written in this very way: 8 or 0.5, but not 1_0 or 1e3."""
    read = _read_by_hydra(value)
    return isinstance(read, int | float) and str(read) == value


def _is_read_as(value: str) -> bool:
    """Whether Hydra reads a value as this very text, or as the text that its escapes stand for."""
    read = _read_by_hydra(value)
    return isinstance(read, str) and (read == value or bool(ESCAPED.search(value)))


def _read_by_hydra(value: str) -> Any:
    """What Hydra makes of one value; None where it cannot read it."""
    try:
        return OverridesParser.create().parse_rule(value, "primitive")
    except HydraException:
        return None


def split_words(value: str) -> list[str]:
    """The parts between commas, but not between those inside of brackets and quotes, nor behind a backslash."""
    parts, depth, mark, escaped = [""], 0, "", False
    for letter in value:
        if letter == "," and not (depth or mark or escaped):
            parts.append("")
            continue
        if not escaped and letter in "'\"" and (mark == letter or (not mark and not parts[-1].strip(" [("))):
            mark = "" if mark else letter
        elif not (mark or escaped):
            depth += (letter in "[({") - (letter in "])}" and depth > 0)
        escaped = letter == "\\" and not escaped
        parts[-1] += letter
    return parts


# ------------------------------------------------------------------------------------------- which keys hold text


@cache
def holds_text(key: str) -> bool | None:
    """Whether the schema has text, or a list of texts, under a key; None for a key that it does not know."""
    if key in GROUPS:
        return True
    hint: Any = Config
    group, *_ = steps = key.split(".")
    for step in steps:
        if not dataclasses.is_dataclass(hint):
            return None
        hint = _inner(_keys(typing.cast(type, hint), group).get(step))
    return None if hint is None else hint is str


def _keys(cls: type, group: str) -> dict[str, Any]:
    """The keys of a dataclass and their types; of a part those that its group knows."""
    if cls is not Part:
        return typing.get_type_hints(cls, include_extras=True)
    return {"name": str, "card": Card, **typing.get_type_hints(OPTIONS[group], include_extras=True)}


def _inner(hint: Any) -> Any:
    """The type inside of `T | None`, of an annotation and of a tuple."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union, Annotated, tuple):
        return _inner(typing.get_args(hint)[0])
    return hint
