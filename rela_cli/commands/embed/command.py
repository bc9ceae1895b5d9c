"""`rela embed RUN FOLDER --to FILE`: the features of the images in a folder, by file name."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rela_cli.commands.embed.files import WRITERS, check_format
from rela_cli.config.arguments import Choice, WholeNumber
from rela_cli.config.compose import Composer
from rela_cli.config.overrides import CommandLine, RunParser
from rela_cli.config.schema import NETWORKS, Config, Part
from rela_cli.data.files.entries import left_out_text
from rela_cli.data.files.index import Index, list_images
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.disk import disk_errors
from rela_cli.store.files import Facts, file_sha256, fingerprint, provenance, read_json, remove_tree, write_json
from rela_cli.store.locks import Lock
from rela_cli.store.notices import warn
from rela_cli.store.outputs import find_run, run_names
from rela_cli.store.versions import VERSIONS
from rela_cli.terminal import as_size, few, line
from rela_cli.weights import locate
from rela_cli.weights.run_folder import with_backbone

if TYPE_CHECKING:
    from rela_cli.commands.embed.network import ReadyPrior

SETTING = re.compile(r"(?:[A-Za-z_][\w.]*|hydra/\w+)=")  # a path with a = in it is written ./a=b
MEANT = ("prior", "learner", "runtime", "allow", "paths.outputs")  # settings of a run that change features, or places
EXAMPLE = "rela embed latest photos --to features.parquet"


@dataclass(frozen=True)
class EmbedRequest:
    """What the command line asks for; `run` is empty where a prior was named."""

    run: str
    folder: Path
    to: Path
    image_size: int | None
    network: str
    overwrite: bool
    line: CommandLine


def main(words: list[str]) -> int:
    """Make the file, go on with one that was begun, or say that it is there.

    Raises:
        ConfigError: a command line that is wrong. MissingError: no run, no images, or none that can be read.
    """
    request = read(words)
    config = embedding_config(request)
    locate.locate(config.prior)
    index = images_below(request.folder, config.outputs / "cache")
    identity = identity_of(config, request, index)
    part = request.to.with_name(f".{request.to.name}.part")
    with disk_errors(request.to, way_out="--to=FILE"):
        if is_done(request, identity, part.exists()):
            return 0
        part.mkdir(parents=True, exist_ok=True)
        with Lock(part / ".lock", f"the file {request.to}").held():
            for leftover in part.parent.glob(f".{escape(request.to.name)}.*.tmp"):  # of a killed process
                leftover.unlink()
            if not is_done(request, identity, True):  # another process may have made it meanwhile
                make(request, config, index, identity, part)
            remove_tree(part)
    return 0


def parser() -> RunParser:
    """The command line of `rela embed`."""
    made = RunParser(
        "embed",
        """Writes the features of all images in FOLDER, by file name, as a finished run's backbone or a prior gives
them. If it is interrupted, the same command continues; if it is repeated, it does nothing.""",
        [
            EXAMPLE,
            "rela embed prior=dinov2_vits14 photos --to features.npz",
            "rela embed prior=patches photos --to features.csv --image-size 32",
        ],
    )
    made.usage = "rela embed RUN|prior=NAME FOLDER --to FILE [key=value ...] [flags]"
    a_run = "a finished run: its folder, its name, a part of its name, or latest; or prior=NAME in its place"
    made.add("run", metavar="RUN", nargs="?", help=a_run, offers=run_names)
    made.add("folder", metavar="FOLDER", nargs="?", help="images, in folders of any depth")
    to = "FILE.parquet, .npz, .npy or .csv; FILE.json beside it says how it was made"
    made.add("--to", metavar="FILE", type=lambda text: Path(text).expanduser(), help=to)
    size = "bring images to such squares first, as dataset.image_size does (default: the network's own size)"
    made.add("--image-size", metavar="PIXELS", type=WholeNumber("--image-size", 4), help=size)
    networks, which = Choice("--network", (*NETWORKS,)), "of a run that keeps a target network (default: online)"
    made.add("--network", metavar="|".join(NETWORKS), type=networks, help=which)
    made.add("--overwrite", action="store_true", help="replace a FILE that holds something else")
    return made


def read(words: Sequence[str]) -> EmbedRequest:
    """The command line.

    Raises:
        ConfigError: it is wrong.
    """
    given, line = parser().read_line(words)
    settings = [word for word in line.overrides if SETTING.match(word)]
    places = [word for word in line.overrides if not SETTING.match(word)]
    check_settings(settings)
    has_prior = any(word.startswith("prior=") for word in settings)
    if len(places) != 2 - has_prior:
        raise ConfigError(
            f"say a folder of images, and before it a run, or prior=NAME: {EXAMPLE}"
            + (f" (given: {' '.join(places)})" if places else "")
        )
    if not given.to:
        raise ConfigError(f"say where to: {EXAMPLE}")
    check_format(given.to)
    if has_prior and given.network:
        raise ConfigError("--network is for a run; of prior=rela_run say prior.network=target")
    run, folder = ("", *places)[-2:]
    rest, network = CommandLine(line.flags, tuple(settings)), given.network or "online"
    return EmbedRequest(run, Path(folder).expanduser(), given.to, given.image_size, network, given.overwrite, rest)


def check_settings(words: Sequence[str]) -> None:
    """Raises ConfigError for a setting that would change nothing."""
    for word in words:
        key = word.partition("=")[0]
        if key.partition(".")[0] == "dataset":
            raise ConfigError(f"{word}: rela embed reads the images of FOLDER; their size is --image-size PIXELS")
        if not any(key == meant or key.startswith(f"{meant}.") for meant in MEANT):
            raise ConfigError(f"{word} means nothing to rela embed (what does: {', '.join(MEANT)})")


def embedding_config(request: EmbedRequest) -> Config:
    """The config whose prior is the network: the one that was named, or the run's backbone.

    Raises:
        ConfigError: settings that are wrong. MissingError: no such run, or one without a backbone.
    """
    config = Composer(request.line).check()
    if config.runtime.devices > 1:
        raise ConfigError("rela embed computes on one device; say runtime.devices=1")
    if config.is_plain:
        raise ConfigError("prior=none is no network; say another prior, or a run")
    if not request.run:
        return config
    run = with_backbone(find_run(request.run, config.outputs), request.network)
    part = Part("rela_run", "rela_cli.priors.run.RelaRun", {"run": str(run), "network": request.network})
    return replace(config, prior=part)


def images_below(folder: Path, cache: Path) -> Index:
    """All image files below a folder; what does not count is said.

    Raises:
        MissingError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise MissingError(f"{folder} is not a folder (looked at {folder.absolute()})")
    index = list_images(folder, [""], None, cache if cache.is_dir() else None)
    left = left_out_text(index.left())
    if not index.count():
        raise MissingError(f"no images in {folder}" + (f", only {left}" if left else ""))
    if left:
        warn(f"not used in {folder}: {left}")
    if odd := index.odd.get("", {}):
        warn(f"left out, no images: {few([f'{name} {why}'.strip() for name, why in odd.items()])}")
    return index


def identity_of(config: Config, request: EmbedRequest, index: Index) -> Facts:
    """What the features depend on."""
    return {
        "network": fingerprint(locate.identity(config.prior)),
        "files": index.fingerprint,
        "image_size": request.image_size,
        "precision": config.runtime.extract_precision,
        "version": VERSIONS["extract"],
    }


def is_done(request: EmbedRequest, identity: Facts, is_begun: bool) -> bool:
    """Whether the file is there and holds just these features; then that is said.

    Raises:
        ConfigError: it holds something else, and nobody said that it may go.
    """
    to = request.to
    if not to.exists():
        return False
    facts = read_json(facts_file(to)) or {}
    if facts.get("identity") == identity and facts.get("sha256") == file_sha256(to):
        line(f"  already there  {to}: {facts['count']:,} x {facts['width']}")
        return True
    if is_begun or request.overwrite:
        return False
    other = [key for key, value in identity.items() if facts.get("identity", {}).get(key) != value]
    what = f"was made with other {' and '.join(other)}" if facts and other else "was not made by rela, or has changed"
    raise ConfigError(f"{to} {what}: say another --to FILE, or --overwrite to replace it")


def facts_file(path: Path) -> Path:
    """The file that says how another was made."""
    return path.with_name(f"{path.name}.json")


def make(request: EmbedRequest, config: Config, index: Index, identity: Facts, part: Path) -> None:
    """Compute what is missing, then write the file, then what says how it was made.

    Raises:
        MissingError: no image can be read.
    """
    from rela_cli.commands.embed.features import Features
    from rela_cli.commands.embed.network import network_of

    started, paths = time.perf_counter(), index.lists[0]
    network = network_of(config, request.folder, paths, request.image_size)
    features = Features(part, paths)
    features.make(network, request.folder, config.runtime, identity)
    unreadable = features.unreadable()
    if len(unreadable) == len(paths):
        raise MissingError(f"none of {len(paths):,} images in {request.folder} can be read: {few_reasons(unreadable)}")
    facts = {**facts_of(config, request, network), "count": len(paths) - len(unreadable), "unreadable": unreadable}
    WRITERS[request.to.suffix](features.embedding(facts), request.to)
    write_json(
        facts_file(request.to), {**facts, "identity": identity, "sha256": file_sha256(request.to), **provenance()}
    )
    show(request, facts, time.perf_counter() - started)


def facts_of(config: Config, request: EmbedRequest, network: ReadyPrior) -> Facts:
    """How features were made, for the file's metadata."""
    prior = config.prior
    source = {"run": Path(prior.options["run"]).name, "network": request.network} if request.run else {}
    return {
        **(source or {"prior": locate.shown_name(prior), **locate.file_name(prior)}),
        "folder": str(request.folder),
        "width": network.prior.feature_dim,
        "preprocessing": network.preprocessing,
        "precision": config.runtime.extract_precision,
    }


def few_reasons(unreadable: Facts) -> str:
    """The first files that cannot be read, with the reasons."""
    return few([f"{name} ({why})" for name, why in unreadable.items()])


def show(request: EmbedRequest, facts: Facts, seconds: float) -> None:
    """What was made, from what, and what is not in it."""
    to, fed = request.to, facts["preprocessing"]
    line(f"  network   {facts.get('run') or facts['prior']}, {facts['width']} features, images of {fed['crop']} px")
    if unreadable := facts["unreadable"]:
        line(f"  left out  {len(unreadable):,} that cannot be read: {few_reasons(unreadable)}")
    line(f"  made      {to}: {facts['count']:,} x {facts['width']}, {as_size(to.stat().st_size)}, {seconds:.1f} s")
    line(f"  how       {facts_file(to)}")
