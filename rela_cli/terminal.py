"""Text for people: numbers with their units, and text made safe for a terminal.

Names and messages from files may hold escape codes, line ends, broken bytes.

`printable` makes them visible, and `guarded` stands behind everything that is printed. Nothing but text gets through;
what libraries draw (colours, a progress bar) does where the stream is a terminal.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

# control characters but the tab, marks of the reading direction, ends of lines, bytes that are no characters
HARMFUL = r"\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
HARMFUL_TEXT = re.compile(f"[{HARMFUL}]")
BUT_LINES = re.compile(f"(?!\n)[{HARMFUL}]")
BUT_PROGRESS = re.compile(f"(?![\n\r])[{HARMFUL}]")
BUT_DRAWING = re.compile(rf"(\x1b\[(?:\d*[AK]|[\d;]*m|\?25[lh]))|(?![\n\r])[{HARMFUL}]")
UNLIMITED_COLUMNS = 10**6  # columns where no terminal says how many: a line for a program stays one
NARROW, INDENT = 30, 6  # columns: the least that text is laid out on, and where what is too wide for its column begins
GLUE = "\xa0"  # a space that no line ends at
WORD_STYLES = {
    **dict.fromkeys(("ok", "whole", "finished"), "green"),
    **dict.fromkeys(("warn", "running", "stopped", "killed"), "yellow"),
    **dict.fromkeys(("fail", "failed", "damaged"), "red"),
}
DURATIONS = ((86400, "days"), (3600, "h"), (60, "min"))
ESCAPES = {"\n": "\\n", "\r": "\\r"}


def printable(text: str, lines: bool = False) -> str:
    r"""The text on one line, every control character as Python writes it (\n, \x1b); `lines` keeps line ends.

    A byte of a file name that is no UTF-8 is shown as \xe9, so the text can be written in any encoding of Unicode.
    """
    return (BUT_LINES if lines else HARMFUL_TEXT).sub(_visible, text)


def plural(number: int, noun: str, several: str = "") -> str:
    """A number with its noun: `1 run`, `2 runs`; `several` where an s does not make the plural."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and dots for the rest."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def as_duration(seconds: float, exact: bool = False) -> str:
    """26.4 s, 3.2 min, 1.5 h, 2.1 days; `exact`: three digits, and the next unit as soon as one of it is full."""
    least = 1 if exact else 2
    size, unit = next(((size, unit) for size, unit in DURATIONS if seconds >= least * size), (1, "s"))
    return f"{as_three_digits(seconds / size) if exact else f'{seconds / size:.1f}'} {unit}"


def as_size(size: int) -> str:
    """Bytes: 1.2 GB, 34.5 MB, 6 kB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{math.ceil(size / 1000)} kB"


def as_si(value: float, unit: str = "") -> str:
    """Three digits with an SI prefix: 1.23 GFLOP."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{as_three_digits(value)} {prefixes[0]}{unit}".rstrip()


def as_three_digits(value: float) -> str:
    """1.23, 12.3, 123, 1,234."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def as_percent(share: object, empty: str = "") -> str:
    """An accuracy or another share in percent with one digit behind the point; `empty` for what is no number."""
    return f"{100 * share:.1f}" if isinstance(share, float) else empty


def _visible(found: re.Match[str]) -> str:
    if found.re is BUT_DRAWING and found[1]:
        return found[1]
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        code -= 0xDC00
    return ESCAPES.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def readable(tree: Any) -> Any:
    """A tree of JSON whose every text, keys too, is `printable`: for what is shown and not looked up."""
    if isinstance(tree, dict):
        return {printable(key): readable(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [readable(value) for value in tree]
    return printable(tree) if isinstance(tree, str) else tree


def line(text: str) -> None:
    """One line on stdout, whatever stands in it."""
    print(printable(text))


def item(head: str, text: str, column: int) -> None:
    """A line on stdout, `text` from a column on; what the terminal has no room for goes on below, never in mid-word.

    Where the head is too long, or a word of the text too wide, the text begins on the next line. A first word of either
    that is one of `WORD_STYLES` has its colour on a terminal.
    """
    head, text, width = printable(head), printable(text), terminal_width()
    widest = max(map(len, text.split(" ")), default=0)
    fits = len(head) < column and max(widest, NARROW) <= width - column
    indent = column if fits else INDENT
    room = max(width - indent, NARROW)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    first = [f"{head:<{column}}{''.join(lines[:1])}"] if fits else [head] if head else []
    below = [" " * indent + rest for rest in lines[fits:]]
    words = (word.rstrip(":") for word in (*head.split()[:1], *text.split()[:1]))
    shown = "\n".join(part.rstrip() for part in (*first, *below))
    coloured(shown.replace(GLUE, " "), next((w for w in words if w in WORD_STYLES), ""))


def terminal_width() -> int:
    """How wide stdout is: $COLUMNS, or the terminal; nothing else has a width."""
    known = "COLUMNS" in os.environ or sys.stdout.isatty()
    return shutil.get_terminal_size((UNLIMITED_COLUMNS, 24)).columns if known else UNLIMITED_COLUMNS


def unbroken(phrase: str) -> str:
    """A phrase whose words `item` keeps on one line."""
    return phrase.replace(" ", GLUE)


def coloured(text: str, word: str) -> None:
    """Text on stdout; on a terminal that shows colours the first place of a word of `WORD_STYLES` in its own."""
    if not word or not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.text import Text

    shown, start = Text(text), text.index(word)
    shown.stylize(WORD_STYLES[word], start, start + len(word))
    Console().print(shown, soft_wrap=True)


def indented(message: str) -> str:
    """A message of several lines; all but the first are indented, so no name in it can begin a line of its own."""
    return printable(message, lines=True).replace("\n", "\n  ")


class Guarded:
    """A stream that passes on text and nothing else; on a terminal also what draws colours and progress bars."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.harmful = stream, BUT_DRAWING if stream.isatty() else BUT_PROGRESS

    def write(self, text: str) -> int:
        encoding = self.stream.encoding or "utf-8"
        safe = self.harmful.sub(_visible, text)
        self.stream.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        self.write("".join(texts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Guard stdout and stderr against whatever is printed meanwhile, by us or by a library."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Guarded(stream)) if stream else stream for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
