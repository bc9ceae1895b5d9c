"""What the shell may complete a word of the command line with: flags, their values, groups, runs, tables. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from importlib import import_module

from rela_cli.commands.data.verbs import VERBS
from rela_cli.config.arguments import Parser


def candidates(module: str, words: Sequence[str]) -> list[str]:
    """What the last of the words after a command may become."""
    if module == "data.verbs" and len(words) <= 1:
        return fitting(VERBS, words)
    if module == "data.verbs":
        module, words = f"data.{words[0]}", words[1:]
    parser: Parser = import_module(f"rela_cli.commands.{module}").parser()
    options = parser._option_string_actions
    before = options.get(words[-2]) if len(words) > 1 else None
    if before is not None and before.nargs != 0:
        return fitting(values(parser, before), words)
    if words and words[-1].startswith("-"):
        return fitting(options, words)
    positional = [action for action in parser._actions if not action.option_strings]
    return fitting([name for action in positional for name in values(parser, action)], words)


def values(parser: Parser, action: argparse.Action) -> Iterable[str]:
    """What an argument may be, where that is known."""
    offers = parser.offers.get(action.dest)
    return offers() if offers else getattr(action.type, "names", ())


def fitting(names: Iterable[str], words: Sequence[str]) -> list[str]:
    """The names that begin as the last word does."""
    return [name for name in names if name.startswith(words[-1] if words else "")]
