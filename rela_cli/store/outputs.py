"""What lies under outputs/: runs, cache entries, leftovers; what each takes, and who needs what. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rela_cli.errors import MissingError, did_you_mean
from rela_cli.store.disk import OUTPUTS
from rela_cli.store.files import TEMPORARIES, Facts, read_json, section
from rela_cli.store.files import size_of as size_of
from rela_cli.store.integrity import damage
from rela_cli.store.locks import Lock, RunLock
from rela_cli.store.versions import MADE_BY, is_older
from rela_cli.terminal import as_size

ELSEWHERE = ".elsewhere"  # under runs/: where runs lie that are not there
UNFINISHED = ("running", "killed", "stopped", "failed", "damaged")  # states from which the same command goes on


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells it."""

    folder: Path
    facts: Facts
    bytes: int

    @property
    def status(self) -> str:
        """running (its lock is held), finished, stopped, failed, damaged, or killed: nobody is at what should be."""
        if not RunLock(self.folder).is_free():
            return "running"
        status = str(self.facts.get("status", "damaged"))
        return "killed" if status in ("running", "trained") else status

    @property
    def is_open(self) -> bool:
        """Whether the same command would go on with it: not when resume=never has set it aside."""
        return self.status in UNFINISHED and not re.search(r"\.old-\d+$", self.folder.name)

    @property
    def title(self) -> str:
        """Its name, or where it lies when that is elsewhere."""
        return self.folder.name if self.folder.parent.name == "runs" else str(self.folder)

    @property
    def made(self) -> str:
        return when(self.facts)

    @property
    def result(self) -> Facts:
        return read_json(self.folder / "result.json") or {}

    @property
    def is_older(self) -> bool:
        """Whether another version of rela made it: the same command makes another run today, beside this one."""
        return is_older("run", section(self.result, "settings"))

    def needs(self, entry: CacheEntry) -> bool:
        """Whether the run was made, or would go on, from an entry; of one whose manifest is damaged any may be."""
        if not self.facts:
            return True
        inputs = section(self.facts, "inputs")
        if entry.kind in inputs:
            of_members = section(self.facts, "members").get(entry.kind) or ()
            return entry.folder.name in (inputs[entry.kind], *of_members)
        spec = section(entry.facts, "spec")  # a baseline: of the same targets, or of the same images
        of = "targets" if "targets" in spec else "images"
        return entry.kind == "baselines" and spec.get(of) is not None and spec.get(of) == inputs.get(of)


@dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache, and the runs that it is needed by."""

    folder: Path
    facts: Facts
    bytes: int
    problem: str | None
    users: list[RunFolder] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def title(self) -> str:
        return f"{self.kind}/{self.folder.name}"

    @property
    def made(self) -> str:
        return when(self.facts)

    @property
    def is_older(self) -> bool:
        """Whether another version of rela made it: no run of today reads it."""
        return is_older(self.kind, section(self.facts, "spec"))

    @property
    def lock(self) -> Lock:
        return Lock(self.folder.with_name(f".{self.folder.name}.lock"), self.title)


@dataclass(frozen=True)
class Leftover:
    """What nobody will read again: half-made, set aside, or unpacked halfway."""

    path: Path
    why: str
    bytes: int


@dataclass(frozen=True)
class Inventory:
    """All that is there."""

    outputs: Path
    runs: list[RunFolder]
    entries: list[CacheEntry]
    leftovers: list[Leftover]


def take_inventory(outputs: Path) -> Inventory:
    """Look at every folder; sizes and manifests are read, contents are not. `paths.outputs=FOLDER` is a folder, too.

    Raises:
        MissingError: no such folder.
    """
    outputs = Path(str(outputs).removeprefix("paths.outputs=")).expanduser()
    if not outputs.is_dir():
        raise MissingError(f"{outputs} is not a folder; runs are in outputs/ unless paths.outputs= says otherwise")
    runs = [run_at(folder) for folder in (*run_folders(outputs), *elsewhere(outputs))]
    entries = [entry_at(path, runs) for kind in MADE_BY for path in folders(outputs / "cache" / kind)]
    return Inventory(outputs, runs, entries, leftovers(outputs))


def run_folders(outputs: Path) -> list[Path]:
    """Each run once: a folder may be a link to another disk; `latest` is a link to a run that is here anyway."""
    found = sorted(path.parent for path in outputs.glob("runs/*/manifest.json"))
    links = {folder for folder in found if folder.is_symlink()}
    here = (outputs / "runs").resolve()  # asked once: there may be thousands of runs
    real = {folder: folder.resolve() if folder in links else here / folder.name for folder in found}
    own_first = sorted(found, key=lambda folder: folder in links)
    kept = {real[folder]: folder for folder in reversed(own_first)}
    return [folder for folder in found if kept[real[folder]] == folder]


def run_names() -> list[str]:
    """The names by which a run can be found in outputs/."""
    return [*(["latest"] if (OUTPUTS / "runs" / "latest").exists() else []), *(f.name for f in run_folders(OUTPUTS))]


def elsewhere(outputs: Path) -> list[Path]:
    """Runs under paths.run=FOLDER that use this cache, by the words that they have left (`register_elsewhere`)."""
    said = [Path(os.fsdecode(word.read_bytes())) for word in sorted(outputs.glob(f"runs/{ELSEWHERE}/*.txt"))]
    here = {folder.resolve() for folder in run_folders(outputs)} if said else set()
    return [folder for folder in said if folder not in here and (folder / "manifest.json").is_file()]


def run_at(folder: Path) -> RunFolder:
    """The run in a folder."""
    return RunFolder(folder, read_json(folder / "manifest.json") or {}, size_of(folder))


def entry_at(folder: Path, runs: Sequence[RunFolder]) -> CacheEntry:
    """The entry in a folder, with those of the runs that it is needed by."""
    size = 0 if folder.is_symlink() else size_of(folder)  # a link takes no room here
    entry = CacheEntry(folder, read_json(folder / "manifest.json") or {}, size, damage(folder))
    entry.users.extend(run for run in runs if run.needs(entry))
    return entry


def folders(place: Path) -> list[Path]:
    """The entries of a kind."""
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if p.is_dir() and p.name[0] != "." and p.suffix != ".corrupt")


def leftovers(outputs: Path) -> list[Leftover]:
    """Half-made entries that nobody is at, damaged ones that were set aside, temporary files of runs nobody is in."""
    found = []
    for suffix, why in (
        ("tmp", "half-made by a killed process"),
        ("part", "the beginning of an extraction; its command would go on with it"),
    ):
        for path in sorted(outputs.glob(f"cache/*/.*.{suffix}")):
            if Lock(path.with_name(f"{path.stem}.lock"), "").is_free():
                found.append(Leftover(path, why, size_of(path)))
    for path in sorted(outputs.glob("cache/*/*.corrupt")):
        found.append(Leftover(path, "damaged, set aside", size_of(path)))
    for pattern, why in (
        *((pattern, "half-written by a killed process") for pattern in TEMPORARIES),
        ("*.corrupt", "damaged, set aside"),
    ):
        for path in (path for folder in run_folders(outputs) for path in sorted(folder.glob(pattern))):
            if RunLock(path.parent).is_free():
                found.append(Leftover(path, why, size_of(path)))
    return found


def find_run(word: str, outputs: Path) -> RunFolder:
    """A run by its folder, its name, or any part of its name that no other has.

    Raises:
        MissingError: none, or several.
    """
    for place in (Path(word).expanduser(), outputs / "runs" / word):
        if (place / "manifest.json").is_file():
            return run_at(place.resolve())
    names = [folder.name for folder in run_folders(outputs)]
    close = [name for name in names if word in name]
    if len(close) == 1:
        return run_at(outputs / "runs" / close[0])
    if close:
        raise MissingError(f"{len(close)} runs have {word} in their name: {', '.join(close[:5])}")
    raise MissingError(f"no run {word} in {outputs}/runs{did_you_mean(word, names)}; `rela ls` shows what is there")


def top1_by_protocol(result: Facts) -> dict[str, float]:
    """top-1 by protocol, of whatever a result.json holds."""
    probe = section(result, "probe")
    return {key: n["top1"] for key, n in probe.items() if isinstance(n, dict) and isinstance(n.get("top1"), float)}


def when(facts: Facts) -> str:
    """Day and minute at which a manifest says that its folder was begun, for a column."""
    return str(facts.get("created", "?"))[:16].replace("T", " ").ljust(16)


def size_text(size: int) -> str:
    """A size, right-aligned for a column."""
    return as_size(size).rjust(9)
