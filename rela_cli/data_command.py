"""`rela data check` and `rela data pack`: what is done with a dataset as a whole, before any run."""

from __future__ import annotations

from importlib import import_module

from rela_cli.errors import ConfigError, nearest

VERBS = {"check": "check", "pack": "pack"}  # and their modules
USAGE = """\
say rela data check dataset=NAME [dataset.root=FOLDER ...]
or  rela data pack dataset=NAME [dataset.root=FOLDER ...] to=FOLDER [size=PIXELS] [quality=1..100] [shard_mb=1024]"""


def main(words: list[str]) -> int:
    """Run one of the verbs; its exit status.

    Raises:
        ConfigError: another word stands there.
    """
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    verb = words[0]
    if verb not in VERBS:
        raise ConfigError(f"rela data {verb}{nearest(verb, VERBS)}\n{USAGE}")
    return int(import_module(f"rela_cli.{VERBS[verb]}").main(words[1:]))
