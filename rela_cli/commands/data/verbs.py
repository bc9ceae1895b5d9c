"""`rela data check`, `pack` and `holdout`: what is done with a dataset as a whole, before any run."""

from __future__ import annotations

from importlib import import_module

from rela_cli.config.arguments import Parser
from rela_cli.errors import ConfigError, did_you_mean

VERBS = {  # each has the module of its name
    "check": "read every image once: what is there, what is broken",
    "pack": "copy the images into a few large files",
    "holdout": "hold out a part of train, to choose settings by",
}


def main(words: list[str]) -> int:
    """Run one of the verbs; its exit status.

    Raises:
        ConfigError: another word stands there.
    """
    verb = words[0] if words else ""
    if verb not in VERBS:
        parser().help_if_asked(words)
        hint = did_you_mean(verb, VERBS)
        raise ConfigError(f"say what to do with the data{f', not {verb}' if verb else ''}{hint}: {ways()}")
    return int(import_module(f"rela_cli.commands.data.{verb}").main(words[1:]))


def parser() -> Parser:
    """The help of `rela data`."""
    lines = [f"  rela data {verb:<7} {does}" for verb, does in VERBS.items()]
    made = Parser(
        "data", "Checks or copies a whole dataset, before any run.", [f"{w} --help" for w in ways().split(" or ")]
    )
    made.usage = "rela data check|pack|holdout [key=value ...] [flags]"
    made.description = "\n".join([str(made.description), "", *lines])
    return made


def ways() -> str:
    """The verbs as they are typed."""
    return " or ".join(f"rela data {verb}" for verb in VERBS)
