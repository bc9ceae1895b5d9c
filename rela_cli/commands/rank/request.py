"""The command line of `rela rank`: which priors, what each of them is given, and what they all share.

`--priors a=checkpoint,b=checkpoint a.weights=one.pth b.weights=two.pth dataset.root=FOLDER`: a key under an entry's
name is a key of that prior alone; `prior.KEY=` is for a key that one of them has; everything else is every run's.
`a+b` is the ensemble of two entries of the list with their keys, or of the priors with these names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rela_cli.config.arguments import Choice, WholeNumber
from rela_cli.config.compose import Composer
from rela_cli.config.overrides import CONFIG_FLAGS, CommandLine, RunParser
from rela_cli.config.schema import GROUPS, Config
from rela_cli.config.text import holds_text, quoted_values
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.report.grids.formats import FORMATS

RANK_SAMPLE = 2000  # train images looked at, and as many test images for the label-using scores; `n=` changes it
ALIAS = re.compile(r"[A-Za-z_]\w*")
SAY_WHICH = "say which: rela rank --priors random,patches,embedded (`rela list priors` shows them)"


@dataclass(frozen=True)
class Candidate:
    """One line of the ranking: a prior, under its own name or under one that the user gave it."""

    name: str
    prior: str

    @property
    def is_named(self) -> bool:
        """Whether the user gave it a name of its own."""
        return self.name != self.prior and not self.members

    @property
    def members(self) -> list[str]:
        """The priors of an ensemble that is written as patches+embedded."""
        return self.name.split("+") if "+" in self.name else []


@dataclass(frozen=True)
class RankRequest:
    """What the command line asks for."""

    entries: tuple[Candidate, ...]
    n: int
    form: str
    line: CommandLine  # the overrides that are the runs' own


def read(argv: Sequence[str]) -> RankRequest:
    """Our own keys, and the rest of the line.

    Raises:
        ConfigError: no priors named, two under one name, or a value that is not allowed.
    """
    given, line = parser().read_line(argv)
    if line.is_sweep:
        raise ConfigError("rela rank compares --priors by itself; leave -m out")
    entries = entries_of(given.priors)
    if not entries or names_key(line.overrides, "prior"):
        raise ConfigError(SAY_WHICH)
    return RankRequest(entries, given.n, given.format, line)


def parser() -> RunParser:
    """The command line of `rela rank`."""
    made = RunParser(
        "rank",
        """Which prior should I take? Each prior sees the same sample of images, and the targets that it gives are
scored. Nothing is trained.

  checkpoint.weights=FILE  a.model=M   a key of one prior only, by its name in the list
  prior.KEY=VALUE                      the same, if only one prior of the list has the key
  a+b in the list                      the ensemble of both, with the keys that a and b have in the list
  dataset.root=FOLDER ...              all other settings are for all priors""",
        [
            "rela rank --priors random,patches,embedded dataset=image_folder dataset.root=photos dataset.image_size=64",
            "rela rank --priors patches,embedded,patches+embedded",
            "rela rank --priors a=checkpoint,b=checkpoint a.weights=one.pth b.weights=two.pth b.model=resnet50 --n 500",
        ],
        (*CONFIG_FLAGS, "--multirun"),
    )
    priors = "the priors (`rela list priors`); a=timm,b=timm names two of the same kind"
    made.add("--priors", metavar="A,B,...", default="", help=priors)
    seen = f"how many images each prior sees (default: {RANK_SAMPLE})"
    made.add("--n", metavar="N", type=WholeNumber("--n", 20), default=RANK_SAMPLE, help=seen)
    form = Choice("--format", FORMATS)
    made.add(
        "--format", metavar="|".join(FORMATS), type=form, default="rich", help="format of the table (default: rich)"
    )
    return made


def entries_of(text: str) -> tuple[Candidate, ...]:
    """The entries of `[patches,a=checkpoint]`.

    Raises:
        ConfigError: a name that cannot be one, or that stands twice.
    """
    entries = []
    for item in filter(None, re.split(r"[\s,]+", text.strip("[]() "))):
        name, equals, prior = item.partition("=")
        entries.append(Candidate(name, prior if equals else "ensemble" if "+" in name else name))
    for entry in entries:
        if entry.is_named and (not ALIAS.fullmatch(entry.name) or entry.name in (*GROUPS, "runtime", "paths")):
            raise ConfigError(f"priors: {entry.name} cannot be a name; say one such as a={entry.prior}")
        if sum(entry.name == other.name for other in entries) > 1:
            raise ConfigError(
                f"priors: {entry.name} stands twice; give each a name of its own: "
                f"--priors a={entry.prior},b={entry.prior} a.KEY=VALUE b.KEY=VALUE"
            )
    return tuple(entries)


def configs_for(request: RankRequest) -> list[Config]:
    """One config an entry, on the same sample.

    Raises:
        ConfigError: a key that no entry has, or one that several have and nobody says whose it is.
    """
    own, common = words_dealt(request)
    small = {"dataset.limit": request.n, "dataset.test_limit": request.n, "batch_size": 2}  # no step is taken
    shared = [*common, *(f"{key}={value}" for key, value in small.items() if not names_key(common, key))]
    return [
        candidate_config(entry, request.line.flags, [*words_of(entry, request.entries, own), *shared, *own[entry.name]])
        for entry in request.entries
    ]


def command(request: RankRequest, entry: Candidate) -> str:
    """The line that trains with an entry's prior, on all of the data."""
    own, common = words_dealt(request)
    flags = [f"{flag}={value}" for flag, value in request.line.flags.items() if value]
    chosen = words_of(entry, request.entries, own)
    return shlex.join(["rela", "train", *chosen, *own[entry.name], *common, *flags])


def words_dealt(request: RankRequest) -> tuple[dict[str, list[str]], list[str]]:
    """What each entry alone is given, and what is for all."""
    composer = Composer(request.line)
    return dealt(request.line.overrides, {e.name: composer.keys("prior", e.prior) for e in request.entries})


def words_of(entry: Candidate, entries: Sequence[Candidate], own: dict[str, list[str]]) -> list[str]:
    """The overrides that choose an entry's prior; members of an ensemble come with the keys that they have alone."""
    priors = {other.name: other.prior for other in entries}
    members = [member_text(priors.get(name, name), own.get(name, [])) for name in entry.members]
    return [f"prior={entry.prior}", *([f"prior.members=[{','.join(members)}]"] if members else [])]


def member_text(prior: str, words: Sequence[str]) -> str:
    """A member of an ensemble in Hydra's grammar."""
    pairs = [(key.removeprefix("prior."), key, value) for key, _, value in (word.partition("=") for word in words)]
    texts = [f"{short}: {quoted_values(value) if holds_text(key) else value}" for short, key, value in pairs]
    return f"{{name: {prior}, {', '.join(texts)}}}" if texts else prior


def candidate_config(entry: Candidate, flags: dict[str, str | None], words: Sequence[str]) -> Config:
    """The config of one entry; what is wrong with it is said under its name."""
    try:
        return Composer(CommandLine(flags, tuple(words))).check()
    except ConfigError as error:
        raise ConfigError(f"{entry.name}: {error}" if entry.is_named else str(error)) from error


def dealt(words: Sequence[str], keys: dict[str, set[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """What each entry alone is given, as overrides of `prior`, and what is for all; `keys` are those of each entry.

    Raises:
        ConfigError: as `configs_for`.
    """
    own: dict[str, list[str]] = {name: [] for name in keys}
    common: list[str] = []
    for word in words:
        name, _, option = word.partition(".")  # no name of an entry has a = in it
        if not option or name not in ("prior", *keys):
            common.append(word)
            continue
        key = option.partition("=")[0]
        owner = owner_of(key, word, keys) if name == "prior" else name
        if key not in keys[owner]:
            shown = sorted(known for known in keys[owner] if known not in ("name", "_target_") and "." not in known)
            raise ConfigError(f"{owner} has no {key}{did_you_mean(key, shown)} (allowed: {', '.join(shown)})")
        own[owner].append(f"prior.{option}")
    return own, common


def owner_of(key: str, word: str, keys: dict[str, set[str]]) -> str:
    """The one entry that has a key.

    Raises:
        ConfigError: none has it, or several.
    """
    owners = [name for name, known in keys.items() if key in known]
    if not owners:
        raise ConfigError(f"none of these priors has prior.{key}")
    if len(owners) > 1:
        value = word.partition("=")[2]
        ways = " or ".join(f"{name}.{key}={value}" for name in owners)
        raise ConfigError(f"{word}: {' and '.join(owners)} have this key; say whose it is: {ways}")
    return owners[0]


def names_key(words: Sequence[str], key: str) -> bool:
    """Whether one of the overrides sets `key`."""
    return any(word.startswith(f"{key}=") for word in words)
