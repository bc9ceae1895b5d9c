"""Runs the parts of scripts/gpu_day.sh one after the other, keeps what they find, and writes the page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REHEARSAL = "cpu (rehearsal)"
LEAST = 8  # seconds below which nothing is begun
WHOLE = "the whole part"
MACHINE, TABLE1 = "machine", "table1"
CAPS = {"sanity": 110, "step": 110, "resnet50": 45, "extract": 45, "after": 45}  # seconds of each part, in their order
TITLES = {
    "sanity": "Is it right? GPU against CPU, and waits of the host",
    "step": "Training steps, ResNet-18, 32 px",
    "resnet50": "Training steps, ResNet-50, 224 px",
    "extract": "Extraction, CLIP ViT-B/16",
    "after": "After training: probes and transport",
    TABLE1: "Table 1, CIFAR-10",
}
WORTH = (  # cells of Table 1, the most wanted first; those of a line run side by side
    ("none 0.1", "random_learner 0.1", "embedded 0.1"),
    ("none 0.5", "random_learner 0.5", "embedded 0.5"),
    ("none 1.0",),
    ("none 0.2", "random_learner 0.2", "embedded 0.2"),
    ("own 0.1", "own 0.2", "own 0.5"),
)
REHEARSED = (("none 0.1", "embedded 0.1"), ("none 1.0",), ("own 0.1",))  # one of each kind
FOUND, KEPT = frozenset({"name"}), frozenset({"part", "name", "device"})  # keys of a line, printed and on disk
Line = dict[str, Any]


@dataclass(frozen=True)
class Day:
    """What was asked for."""

    out: Path
    data: str
    limit: float
    small: bool
    parts: tuple[str, ...]

    @classmethod
    def of(cls, environment: dict[str, str]) -> Day:
        """From OUT, DATA, LIMIT, SMALL and PARTS."""
        small = environment.get("SMALL", "") not in ("", "0")
        out = environment.get("OUT") or f"outputs/gpu_day{'_rehearsal' * small}"
        parts = tuple(environment.get("PARTS", "").replace(",", " ").split()) or tuple(TITLES)
        if odd := [part for part in parts if part not in TITLES]:
            raise SystemExit(f"PARTS={' '.join(odd)}: the parts are {', '.join(TITLES)}")
        limit = float(environment.get("LIMIT") or (600 if small else 480))
        return cls(Path(out).absolute(), environment.get("DATA", ""), limit, small, parts)

    @property
    def device(self) -> str:
        """cuda or cpu."""
        return "cpu" if self.small else "cuda"


class Keeper:
    """Lines on disk, each there when it is known, and the page made of them."""

    def __init__(self, day: Day) -> None:
        self.day, self.path = day, day.out / "lines.jsonl"
        day.out.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        self.lines: list[Line] = [found for line in text.splitlines() if (found := read(line, KEPT))]
        if text and not text.endswith("\n"):  # a call was killed while it wrote
            self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def add(self, part: str, line: Line) -> None:
        """Keep a line, and show it."""
        line = {"part": part, **line}
        line.setdefault("device", REHEARSAL if self.day.small else "cuda")
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{part:<9}{line['name']}: {line.get('failed') or line['text']}", flush=True)
        self.write_page()

    def done(self, part: str) -> set[str]:
        """Names of what this part has found, on the device that is asked for."""
        return {line["name"] for line in self.of(part) if not line.get("failed")}

    def of(self, part: str) -> list[Line]:
        """The last line of each name, of a part and of this device; a success stays before a later failure."""
        found: dict[str, Line] = {}
        for line in self.lines:
            is_ours = line["part"] == part and (line["device"] == REHEARSAL) == self.day.small
            if is_ours and (not line.get("failed") or found.get(line["name"], line).get("failed")):
                found[line["name"]] = line
        return list(found.values())

    def write_page(self) -> None:
        """results.md, whole at any time."""
        temporary = self.day.out / ".results.md"
        temporary.write_text("\n".join(page(self)) + "\n", encoding="utf-8")
        os.replace(temporary, self.day.out / "results.md")


def read(line: str, keys: frozenset[str]) -> Line | None:
    """A line of ours, which has these keys; None for one that was cut off, or that somebody else has printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and keys <= found.keys() else None


def page(keeper: Keeper) -> Iterator[str]:
    """The page."""
    if keeper.day.small:
        yield "# A rehearsal on the CPU: no figure here is one of a GPU"
        yield "\nSmall sizes, to show that every part runs. Speeds are left out.\n"
    else:
        yield "# What one GPU says\n"
    for line in keeper.of(MACHINE)[:1]:
        yield f"{line.get('failed') or line['text']}\n"
    for part, title in TITLES.items():
        if not (lines := keeper.of(part)):
            continue
        yield f"## {title}\n"
        yield from ("| what | found | limit | |", "| --- | --- | --- | --- |")
        for line in lines:
            if line["name"] == WHOLE and not line.get("failed"):
                continue
            mark = "FAILED" if line.get("failed") else {True: "ok", False: "MISSED"}.get(line.get("ok"), "")  # type: ignore[arg-type]
            text = line.get("failed") or shown(line, keeper.day.small)
            yield f"| {line['name']} | {text.replace('|', '/')} | {line.get('limit', '')} | {mark} |"
        yield ""
    table = keeper.day.out / "table1.md"
    if table.exists():
        yield table.read_text(encoding="utf-8")


def shown(line: Line, small: bool) -> str:
    """What was found; of a rehearsal no speed."""
    return "ran" if small and line.get("is_speed") else str(line["text"])


# ------------------------------------------------------------------------------------------------------------ the parts


def streamed(command: Sequence[str], seconds: float, log: Path) -> Iterator[str]:
    """What a process prints, line by line; after `seconds` it is ended.

    Raises:
        RuntimeError: it failed, or was ended; the message is its last words.
    """
    ends = time.monotonic() + seconds
    with log.open("a", encoding="utf-8") as errors:
        errors.write(f"== {' '.join(command)}\n")
        errors.flush()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True
        )
        watch = subprocess.Popen(
            [sys.executable, "-c", WATCHER, str(process.pid), str(seconds)], stdin=subprocess.DEVNULL
        )
        try:
            assert process.stdout is not None
            yield from process.stdout
            process.wait()
        finally:
            watch.terminate()
            watch.wait()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        cause = "its time was up" if time.monotonic() >= ends else f"exit {process.returncode}"
        raise RuntimeError(f"{cause}; log.txt has the rest: {last_words(log)}")


WATCHER = """import os, signal, sys, time
pid, seconds = int(sys.argv[1]), float(sys.argv[2])
time.sleep(seconds)
for number in (signal.SIGTERM, signal.SIGKILL):
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        break
    time.sleep(5)
"""


LOOK = """import json, torch
from rela_cli.commands.bench.machine import all_versions
words = ", ".join(f"{name} {version}" for name, version in all_versions().items() if version != "absent")
print(json.dumps({"name": "machine", "text": words, "is_gpu": torch.cuda.is_available()}))
"""  # what it is measured on


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def run_part(keeper: Keeper, part: str, seconds: float) -> None:
    """A part of scripts/gpu_checks.py: each line that it prints is kept; it is not asked for what is there."""
    day, done = keeper.day, keeper.done(part)
    if WHOLE in done:
        return
    command = [sys.executable, "scripts/gpu_checks.py", part, "--device", day.device, "--skip", ",".join(sorted(done))]
    command += ["--small"] * day.small
    if part == MACHINE:
        command = [sys.executable, "-c", LOOK]
    try:
        for line in streamed(command, seconds, day.out / "log.txt"):
            if found := read(line, FOUND):
                keeper.add(part, found)
    except RuntimeError as error:
        keeper.add(part, {"name": WHOLE, "failed": str(error)})
        return
    names = [line["name"] for line in keeper.of(part) if line.get("failed") and line["name"] != WHOLE]
    if names:
        keeper.add(part, {"name": WHOLE, "failed": f"without {', '.join(names)}"})
    else:
        keeper.add(part, {"name": WHOLE, "text": "done"})


# ------------------------------------------------------------------------------------------------------------- table 1


def cell(day: Day, name: str) -> list[str] | None:
    """The command of a cell of Table 1; None where it needs a run that is not there."""
    prior, budget = name.split()
    work = day.out / "work"
    words = [f"paths.outputs={work}", f"budget={budget}", "probe.protocols=[rela,lbfgs,knn]"]
    if day.small:
        words += ["dataset=digits", "method=byol", "learner.width=4", "epochs=1", "runtime.device=cpu"]
        words += ["probe.rela_epochs=2", "switch=fixed", "switch.at=0.5"]
    else:
        words += ["experiment=table1_cifar10", "dataset=image_folder", f"dataset.root={unpacked(day)}"]
    teacher = work / "runs" / "teacher"
    if prior == "own":
        if not (teacher / "result.json").exists():
            return None
        words += ["prior=rela_run", f"prior.run={teacher}"]
    else:
        words.append(f"prior={prior}")
    if name == "none 1.0":
        words.append(f"paths.run={teacher}")
    return [sys.executable, "-m", "rela_cli", "train", *words]


def unpacked(day: Day) -> Path:
    """The folder of images; an archive is unpacked once."""
    place = Path(day.data).absolute()
    if place.is_dir():
        return place
    folder = day.out / "work" / "data"
    if not folder.is_dir():
        from rela_cli.data.files.archives import unpack

        started = folder.with_name("data.part")
        shutil.rmtree(started, ignore_errors=True)  # of a call that was stopped
        unpack(place, started)
        inner = [path for path in started.iterdir() if path.is_dir()]
        (started if (started / "train").is_dir() else inner[0]).rename(folder)
    return folder


def run_table1(keeper: Keeper, ends: float) -> None:
    """Cells in the order of their worth, as many as the time allows; one that was stopped goes on in the next call."""
    day = keeper.day
    if not day.data and not day.small:
        keeper.add(TABLE1, {"name": "cells", "failed": "left out: DATA is not set"})
        return
    for row in REHEARSED if day.small else WORTH:
        names = [name for name in row if name not in keeper.done(TABLE1)]
        run_side_by_side(keeper, names, ends)
        if ends - time.monotonic() < LEAST:
            return


def run_side_by_side(keeper: Keeper, names: Sequence[str], ends: float) -> None:
    """Some cells at once: a step leaves most of a GPU idle, and of a CPU none, so there one after the other.

    Nobody asks whether they have room: by `rela plan` a cell takes 2.2 GB at the most, the host's part included, and
    1.2 GB more while a step is compared with its graph. Three of them are a seventh of a card of 80 GB.
    """
    day, log = keeper.day, keeper.day.out / "log.txt"
    commands = {name: command for name in names if (command := cell(day, name))}
    for some in [[name] for name in commands] if day.small else [list(commands)]:
        left = ends - time.monotonic()
        if left < LEAST:
            return
        started, running = time.monotonic(), {}
        for name in some:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"== {' '.join(commands[name])}\n")
                file.flush()
                running[name] = subprocess.Popen(
                    commands[name], stdout=file, stderr=file, cwd=ROOT, start_new_session=True
                )
        for name, process in running.items():
            try:
                status = process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = stop(process, list(running.values()))
            keeper.add(TABLE1, outcome(day, name, status, time.monotonic() - started))
        write_table(day)
        keeper.write_page()


def stop(process: subprocess.Popen[bytes], all_of_them: Sequence[subprocess.Popen[bytes]]) -> int:
    """Let runs write their checkpoints, so that the next call goes on from there; how one of them ended."""
    for one in all_of_them:
        one.terminate()
    try:
        return process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def outcome(day: Day, name: str, status: int, seconds: float) -> Line:
    """A cell's line."""
    if status:
        cause = "stopped, the time is up; the next call goes on" if status in (143, -15) else f"exit {status}"
        return {"name": name, "failed": f"{cause}; log.txt has the rest"}
    return {"name": name, "text": f"{seconds:.0f} s", "is_speed": True, "seconds": round(seconds, 1)}


def write_table(day: Day) -> None:
    """The table as it stands."""
    command = [sys.executable, "-m", "rela_cli", "table", str(day.out / "work"), "--format", "md"]
    with (day.out / "log.txt").open("a", encoding="utf-8") as log:
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, check=False)
    if made.returncode == 0:
        (day.out / "table1.md").write_text(made.stdout, encoding="utf-8")


def main() -> int:
    """All parts, each in its time; 3 without a GPU, 1 if something failed."""
    day, begun = Day.of(dict(os.environ)), time.monotonic()
    keeper, ends = Keeper(day), begun + day.limit
    run_part(keeper, MACHINE, 120)
    if not day.small and not any(line.get("is_gpu") for line in keeper.of(MACHINE)):
        print("torch sees no GPU here: nothing to measure (SMALL=1 rehearses on the CPU)", file=sys.stderr)
        return 3
    for part in day.parts:
        left = ends - time.monotonic()
        if left < LEAST:
            print(f"{part}: left out, the time is up; the same command goes on", file=sys.stderr)
        elif part == TABLE1:
            run_table1(keeper, ends)
        else:
            run_part(keeper, part, left if day.small else min(CAPS[part], left))
    print(f"{time.monotonic() - begun:.0f} s in all; {day.out / 'results.md'}")
    return int(any(line.get("failed") or line.get("ok") is False for part in day.parts for line in keeper.of(part)))


if __name__ == "__main__":
    sys.exit(main())
