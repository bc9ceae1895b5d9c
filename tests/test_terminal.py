"""Names and messages on their way to a terminal: no escape code, no forged line, no byte that ends the command."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rela_cli import cli, terminal
from rela_cli.errors import RelaError
from rela_cli.store.files import write_json
from rela_cli.store.notices import warn
from rela_cli.terminal import Guarded, as_duration, guarded, indented, printable

EVIL = "a\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\nrela: all is well\r\u202e\udce9"
SHOWN = r"a\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\nrela: all is well\r\u202e\xe9"
Capture = pytest.CaptureFixture[str]


class Screen(io.StringIO):
    """Text that believes it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("a\tb\nc\x1b", lines=True) == "a\tb\nc\\x1b"
    for text in ("naïve 漢字 ± — †", "", "a\\nb", "👩\u200d🔬"):
        assert printable(text) == text


def test_a_message_cannot_begin_a_line_of_its_own() -> None:
    assert indented("one\nrela: two") == "one\n  rela: two"


def test_a_terminal_gets_drawings_and_no_other_code() -> None:
    screen = Screen()
    drawn = "\r\x1b[2K\x1b[1A\x1b[1;31mred\x1b[0m\x1b[?25l\x1b[?25h\n"
    Guarded(screen).write(drawn + "\x1b]0;title\x07\x1b[2J\x1b[5n")
    assert screen.getvalue() == drawn + r"\x1b]0;title\x07\x1b[2J\x1b[5n"


def test_a_file_gets_no_code_at_all() -> None:
    out = io.StringIO()
    Guarded(out).writelines(["\x1b[31mred\x1b[0m ", "30 %\r", "\udce9\n"])
    assert out.getvalue() == "\\x1b[31mred\\x1b[0m 30 %\r\\xe9\n"


def test_letters_that_the_encoding_lacks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    Guarded(out).write("± \udce9")
    out.flush()
    assert raw.getvalue() == rb"\xb1 \xe9"


def test_guarded_puts_the_streams_back() -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), guarded():
        assert isinstance(sys.stdout, Guarded) and isinstance(sys.stderr, Guarded)
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A run and an entry of the cache whose every text is evil."""
    run = tmp_path / "outputs" / "runs" / "evil\x1b[2J-b0.5"
    entry = tmp_path / "outputs" / "cache" / "features" / "entry\nrela: forged"
    names = {"dataset": EVIL, "learner": EVIL, "method": EVIL, "prior": "none"}
    settings = {group: {"name": EVIL} for group in ("dataset", "learner", "method")}
    result = {"status": "finished", "seed": 0, "budget": 0.5, "settings": settings, **names, "device": EVIL}
    result |= {"probe": {"knn": {"top1": 0.5, "network": EVIL}}, "probe_skipped": EVIL, "baselines": {}}
    for folder in (run, entry):
        folder.mkdir(parents=True)
    facts = {"command": EVIL, "reason": EVIL, "host": EVIL, "versions": {EVIL: EVIL}, "inputs": {EVIL: EVIL}}
    write_json(run / "manifest.json", {**facts, "status": EVIL})
    write_json(run / "result.json", result)
    write_json(entry / "manifest.json", {"files": {}})
    (run / EVIL).write_text("")
    return tmp_path / "outputs"


def test_a_long_line_goes_on_below_and_no_word_is_broken(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    terminal.item("ok    outputs", "a folder of runs that can be written to, with 12.5 GB free", 14)
    terminal.item("file", "/a/path/of/more/than/fifty/letters/that/has/no/place/to/break", 10)
    assert capsys.readouterr().out.splitlines() == [
        "ok    outputs a folder of runs that can be written to, with",
        "              12.5 GB free",
        "file",
        "      /a/path/of/more/than/fifty/letters/that/has/no/place/to/break",
    ]
    terminal.item("a name longer than its column", f"one, {terminal.unbroken('two words')}", 10)
    assert capsys.readouterr().out == "a name longer than its column\n      one, two words\n"
    monkeypatch.delenv("COLUMNS")
    terminal.item("ok", "word " * 100, 4)
    assert capsys.readouterr().out == "ok  " + ("word " * 100).rstrip() + "\n", "a program gets one line"


@pytest.mark.parametrize(("environment", "start"), [({}, "\x1b[32mok\x1b[0m "), ({"NO_COLOR": "1"}, "ok ")])
def test_states_have_colours_on_a_terminal(monkeypatch, environment, start):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", **environment}.items():
        monkeypatch.setenv(name, value)
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", screen)
    terminal.item("ok    disk", "well", 14)
    assert screen.getvalue() == start + "   disk    well\n"


COMMANDS = ("ls", "show evil --outputs", "table", "table --format=md", "table --format=csv", "table --format=latex")
DRY = "clean --dry-run --unused --finished --resumable"


@pytest.mark.parametrize("command", [*COMMANDS, "table --format=json", "report --no-neighbours --out=r.html", DRY])
def test_doors(outputs: Path, command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command says, and what it writes, of files that somebody else has made."""
    monkeypatch.chdir(outputs.parent)
    assert cli.main([*command.split(), str(outputs)]) == 0
    said = "".join(capsys.readouterr())
    said += Path("r.html").read_text() if "report" in command else ""
    assert not [letter for letter in said if letter != "\n" and letter != printable(letter)]
    assert not [text for text in said.splitlines() if text.startswith("rela: all is well")]


def test_messages(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings, errors, and what a library prints by itself."""

    def raises(words: Any) -> int:
        print(EVIL.partition("\n")[0])
        warn(EVIL)
        raise RelaError(EVIL)

    monkeypatch.setattr(cli, "dispatch", raises)
    assert cli.main(["ls"]) == 1
    out, err = capsys.readouterr()
    first, rest = SHOWN.split(r"\n", 1)
    assert out == f"{first}\n"
    assert err == f"rela: {first}\n  {rest}\n" * 2


def test_json_keeps_what_it_shows(outputs: Path, capsys: Capture) -> None:
    """For programs nothing is changed: JSON has its own escapes."""
    assert cli.main(["show", "evil", "--json", "--outputs", str(outputs)]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["reason"] == EVIL


@pytest.mark.parametrize(("number", "text"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")])
def test_a_number_with_its_noun(number: int, text: str) -> None:
    assert terminal.plural(number, "entry", "entries") == text
    assert terminal.plural(number, "row") == text.replace("entries", "rows").replace("entry", "row")


def test_each_byte_that_is_no_utf8_is_shown_by_its_number() -> None:
    """Python keeps the bytes 80 to ff of a file's name as U+DC80 to U+DCFF; other surrogates stay what they are."""
    assert printable("\udc80 \udcff") == "\\x80 \\xff"
    assert printable("\udc7f \udd00") == "\\udc7f \\udd00"


@pytest.mark.parametrize(
    ("seconds", "about", "exact"),
    [
        (26.4, "26.4 s", "26.4 s"),
        (90, "90.0 s", "1.5 min"),
        (120, "2.0 min", "2 min"),
        (5400, "90.0 min", "1.5 h"),
        (172800, "2.0 days", "2 days"),
    ],
)
def test_durations(seconds: float, about: str, exact: str) -> None:
    """About: a unit from two of it on. Exact: from one of it on."""
    assert (as_duration(seconds), as_duration(seconds, exact=True)) == (about, exact)
