"""`rela doctor`: is everything in place? Each check answers ok, warn or fail, with a way out."""

from __future__ import annotations

import errno
import json
import netrc
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rela_cli import __version__
from rela_cli.config.arguments import Parser
from rela_cli.config.schema import PACKAGE
from rela_cli.errors import first_line
from rela_cli.machine import memory
from rela_cli.machine.network import unreachable
from rela_cli.machine.processors import cores
from rela_cli.store.disk import existing
from rela_cli.store.locks import Lock, cannot_lock, lock_problem
from rela_cli.store.outputs import size_of, take_inventory
from rela_cli.terminal import as_size, item, plural
from rela_cli.weights.sources import WeightSource

PACKAGES = (
    *("torch", "torchvision", "hydra-core", "omegaconf", "timm", "open_clip_torch", "wandb", "rich", "lightly"),
    *("safetensors", "filelock", "scikit-learn", "scipy", "numpy", "pillow", "matplotlib"),
)
OWN_LINE = ("torch", "torchvision", "hydra-core")  # packages that a check of their own names
FREE_GB = 2.0


@dataclass(frozen=True)
class Check:
    """One answer. Only `fail` makes the exit status 1."""

    name: str
    status: str
    text: str
    way_out: str = ""


def main(argv: list[str]) -> int:
    """Run every check and print the answers."""
    given = parser().read(argv)
    if given.gpu is not None:
        from rela_cli.commands import gpu_count

        return gpu_count.main(given.gpu)
    as_json, checks = given.json, all_checks(given.outputs or Path("outputs"))
    good = all(check.status != "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": good, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            item(f"{check.status:<5} {check.name}", check.text, 19)
            if check.way_out:
                item("", f"-> {check.way_out}", 19)
    return 0 if good else 1


def parser() -> Parser:
    """The command line of `rela doctor`."""
    made = Parser(
        "doctor",
        "Checks whether everything is in place; exit status 1 if not.",
        ["rela doctor", "rela doctor --outputs /data/runs --json"],
    )
    made.add_outputs()
    made.add("--json", action="store_true", help="one JSON object")
    gpu = "what a training step with these settings launches on a GPU, and where it waits; needs no GPU"
    made.add("--gpu", nargs="*", metavar="KEY=VALUE", help=gpu)
    return made


def all_checks(folder: Path) -> list[Check]:
    """All answers, `folder` being that of runs and caches; a check that itself breaks is a failed check."""
    here = [_safely(part) for part in (rela, python, packages, hydra, torch, pair, device, load, images)]
    there = [_safely(part, folder) for part in (outputs, locks, cache)]
    return [*here, *there, *(_safely(part) for part in (weights, hub, wandb, data))]


def _safely(part: Callable[..., Check], *folder: Path) -> Check:
    try:
        return part(*folder)
    except Exception as error:
        return Check(part.__name__, "fail", f"{type(error).__name__}: {first_line(error)}")


def rela() -> Check:
    """rela itself: which one of several this is."""
    return Check("rela", "ok", f"{__version__} in {PACKAGE}")


def python() -> Check:
    """Python itself."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    return Check("python", "ok" if sys.version_info >= (3, 10) else "fail", text)


def packages() -> Check:
    """Every core package, with its version, but for those that have a line of their own."""
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in found.items() if not version]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version and name not in OWN_LINE)
    if missing:
        text = f"missing: {', '.join(missing)}; found: {text}"
        return Check("packages", "fail", text, f"pip install {' '.join(missing)}")
    return Check("packages", "ok", text)


def hydra() -> Check:
    """The security floor: older Hydras run os.system from a config."""
    version, way_out = _version("hydra-core"), "pip install 'hydra-core>=1.3.8,<1.5'"
    if not version:
        return Check("hydra", "fail", "hydra-core is missing", way_out)
    if _numbers(version) < (1, 3, 8):
        return Check("hydra", "fail", f"hydra-core {version} can run os.system from a config", way_out)
    return Check("hydra", "ok", f"hydra-core {version}")


def torch() -> Check:
    """It imports, and loads weights only as weights."""
    version = str(import_module("torch").__version__)
    if _numbers(version) < (2, 10):
        text = f"torch {version}: loading a .pth from somebody else is safer from 2.10 on"
        return Check("torch", "warn", text, "pip install --upgrade torch torchvision, or use .safetensors files")
    return Check("torch", "ok", f"torch {version}")


def pair() -> Check:
    """torchvision is built for one torch; with another its operators are missing."""
    ours, wanted = _version("torch"), _wanted_torch()
    reinstall = f"pip install --force-reinstall torchvision 'torch{wanted}' (both from the same index)"
    try:
        vision = import_module("torchvision")
    except Exception as error:
        if "torchvision::nms" not in str(error):
            raise
        text = f"torchvision was built for another torch than the {ours} here ({first_line(error)})"
        return Check("torchvision", "fail", text, reinstall)
    if not SpecifierSet(wanted).contains(ours, prereleases=True):
        text = f"torchvision {vision.__version__} wants torch{wanted}, not {ours}"
        return Check("torchvision", "warn", text, reinstall)
    return Check("torchvision", "ok", f"torchvision {vision.__version__} is made for this torch")


def device() -> Check:
    """What will compute."""
    torch = import_module("torch")
    if torch.cuda.is_available():
        found = enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))
        names = ", ".join(f"cuda:{i} {gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for i, gpu in found)
        return Check("device", "ok", names)
    threads = plural(torch.get_num_threads(), "thread")
    return Check("device", "ok", f"CPU, {plural(len(cores()), 'core')}, torch uses {threads}; no GPU found")


def load() -> Check:
    """What else this machine is at: with work on every core all times get longer."""
    (last, _, before), free = os.getloadavg(), memory.free()
    text = f"{last:.1f} processes at work in the last minute, {before:.1f} in the last 15"
    text += f", on {plural(len(cores()), 'core')}"
    text += f"; {free / 1e9:.1f} GB of memory free" if free is not None else ""
    if last >= len(cores()):
        return Check("load", "warn", text, "other work slows runs down, and their times and ETAs are longer for it")
    return Check("load", "ok", text)


def images() -> Check:
    """What decodes images; either way gives the same pixels."""
    from rela_cli.data.decoding import jpegs

    way_out = "" if jpegs.decoder() else "optional: pip install 'rela-cli[fast]' decodes small JPEGs in less time"
    return Check("images", "ok", jpegs.named(), way_out)


def outputs(folder: Path) -> Check:
    """The folder that runs are written to."""
    folder = folder.resolve()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        way_out = "choose another folder: paths.outputs=FOLDER"
        return Check("outputs", "fail", f"{folder} cannot be written to: {error.strerror}", way_out)
    free = shutil.disk_usage(there).free / 1e9
    text = f"{folder} can be written to, {free:.1f} GB free"
    if free < FREE_GB:
        return Check("outputs", "warn", text, "make room, or choose another disk: paths.outputs=FOLDER")
    return Check("outputs", "ok", text)


def locks(folder: Path) -> Check:
    """Whether the file system of the folder can lock files: without that two processes could make the same twice."""
    there = existing(folder)
    if problem := lock_problem(there):
        if problem.errno != errno.ENOSYS:
            return Check("locks", "fail", cannot_lock(there, problem.strerror))
        way_out = "choose another disk for paths.outputs=; a killed process leaves its lock file, and rela names it"
        return Check("locks", "warn", f"{there} keeps no locks ({problem.strerror}): lock files stand in", way_out)
    lock = there / f".rela-doctor-{os.getpid()}.lock"
    try:
        with FileLock(lock, timeout=0):
            free = Lock(lock, "").is_free()
    finally:
        lock.unlink(missing_ok=True)
    if free:
        way_out = "choose another disk for paths.outputs=, or run one process at a time"
        return Check("locks", "warn", f"{there} does not keep locks", way_out)
    return Check("locks", "ok", f"{there} keeps locks")


def cache(folder: Path) -> Check:
    """What earlier runs have left: entries, damaged ones, leftovers of killed processes."""
    if not folder.is_dir():
        return Check("cache", "ok", f"no {folder}/ here yet")
    found = take_inventory(folder)
    entries = plural(len(found.entries), "entry", "entries")
    text = f"{plural(len(found.runs), 'run')}, {entries}, {as_size(sum(e.bytes for e in found.entries))}"
    damaged = sum(entry.problem is not None for entry in found.entries)
    if damaged or found.leftovers:
        text += f"; {damaged} damaged, {plural(len(found.leftovers), 'leftover')} of killed processes"
        return Check("cache", "warn", text, "rela clean removes leftovers; damaged entries are made again when needed")
    return Check("cache", "ok", text)


def weights() -> Check:
    """Where downloaded weights lie."""
    places = [WeightSource("hf://owner/repository/file").folder.parent, WeightSource("https://host/file").folder]
    text = ", ".join(f"{place} {as_size(size_of(place))}" if place.is_dir() else f"{place} empty" for place in places)
    there = existing(places[0])
    if not os.access(there, os.W_OK):
        return Check("weights", "warn", f"{there} cannot be written to", "set HF_HOME to a folder that can be")
    return Check("weights", "ok", text)


def hub() -> Check:
    """The model hub; only priors that are downloaded need it."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    why = unreachable(address)
    if why is None:
        return Check("hub", "ok", f"{address} answers")
    way_out = "optional: digits, patches, random and local weights need no network"
    return Check("hub", "warn", f"{address}: {why}", way_out)


def wandb() -> Check:
    """A login; optional."""
    host = re.sub(r"^https?://|/.*$", "", os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if os.environ.get("WANDB_API_KEY") or _in_netrc(host):
        return Check("wandb", "ok", "logged in")
    return Check("wandb", "ok", "no login, which is fine: logger=wandb then records offline (wandb login changes that)")


def data() -> Check:
    """$RELA_DATA, where later commands and tests look for images."""
    root = os.environ.get("RELA_DATA")
    if not root:
        return Check("data", "ok", "$RELA_DATA is not set; digits and fake need none, image_folder takes dataset.root=")
    if not Path(root).is_dir():
        way_out = "unset it, or set it to the folder of your data"
        return Check("data", "warn", f"$RELA_DATA={root} is not a folder", way_out)
    return Check("data", "ok", f"$RELA_DATA={root}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _wanted_torch() -> str:
    """The version specifier for torch in torchvision's own metadata."""
    try:
        needs = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return ""
    return next((str(need.specifier) for need in map(Requirement, needs) if need.name == "torch"), "")


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
