"""Before work: is there room in memory for what a run will take? Else the kernel would say so, by killing it."""

from __future__ import annotations

from collections.abc import Iterator

from rela_cli.errors import RelaError
from rela_cli.machine import memory
from rela_cli.machine.device import pick_device
from rela_cli.pipeline.footprint import Footprint, of_run
from rela_cli.pipeline.preflight import sample_count
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.terms import DEVICE, HOST, PROCESS, Stage
from rela_cli.pipeline.to_do import EXTRACT, TRANSPORT, is_made
from rela_cli.store.notices import warn
from rela_cli.terminal import as_size

# Bytes for each byte of float32 images that a step keeps and that a look takes, beyond any that was measured (a ViT
# with patches of 4 px keeps 2,100). What is small by these need not be counted, which would take a second.
KEPT, LOOKED = 4096, 512
PROBED = 24_000  # bytes an image: 2,048 features in float32, three times
SMALL_SHARE = 0.5  # of the free memory
ROOMY = 0.7  # of it, for what is advised
WAYS_OUT = {
    "images": "dataset.on_disk=true with dataset.image_size=SIZE, decoded as they are used; dataset.limit=N",
    "extract": "runtime.block_size={block}, fewer images at a time; a smaller prior",
    "transport": "a prior with fewer features; transport=standardize",
    "probe": "dataset.limit=N; the backbone is kept, whatever comes of its probe",
    "train": "batch_size={fewer}; accumulate={parts}, a batch in parts; a smaller learner or dataset.image_size",
}


def check(run: Run, until: str = "probe") -> None:
    """Compare each stage up to `until` that is to be made with the memory that is free.

    Tensors that are needed at the same time are counted to the byte, so a stage that has no room for them alone is
    refused. What the process, its libraries and its heap need besides is an estimate, good to 20 %: that is a warning.

    Raises:
        RelaError: what is needed, what is free, and the ways out.
    """
    free = memory.free()
    if free is None or is_small(run, free):
        return
    tensors = (HOST,) if pick_device(run.config.runtime).type == "cuda" else (HOST, DEVICE)  # a GPU's own are not seen
    processes = run.config.runtime.devices
    for stage in to_make(run, of := of_run(run), until):
        sure = processes * stage.total(*tensors)
        likely = sure + processes * (stage.total(PROCESS) - of.libraries)  # those are here already
        if sure > free and stage.name != "probe":
            raise RelaError(
                f"{need_text(stage, sure, free)}\n  {stage.words(*tensors)}\n"
                f"  ways out: {way_out(stage, sure, free, run)}\n"
                "  `rela plan` with the same words shows every stage"
            )
        if likely > free:
            ways = way_out(stage, likely, free, run)
            warn(f"{need_text(stage, likely, free)}: the system may end this run. Ways out: {ways}")


def is_small(run: Run, free: int) -> bool:
    """Whether nothing of the run can be large, without counting."""
    c, size, side = run.config, run.shown_size or 0, run.dataset.side or 0
    batch = c.batch_size // c.accumulate
    pixels = 0 if run.dataset.on_disk else 6 * side**2 * max(run.dataset.count(split) for split in run.dataset.splits)
    image = 3 * 4 * size**2
    probed = PROBED * sample_count(run)
    return max(probed, 2 * batch * image * KEPT, c.runtime.block_size * image * LOOKED, pixels) < SMALL_SHARE * free


def to_make(run: Run, of: Footprint, until: str) -> Iterator[Stage]:
    """The stages up to `until` that are not there yet."""
    if run.images.manifest is None:
        yield of.images()
    if run.config.extracts and not is_made(run, EXTRACT):
        yield of.extract()
    if until == "extract":
        return
    if run.config.extracts and not is_made(run, TRANSPORT):
        yield of.transport()
    if until == "transport":
        return
    if run.trained is None:
        yield of.train()
    if run.missing_probes():
        yield of.probe()


def need_text(stage: Stage, needed: float, free: int) -> str:
    """Need and supply."""
    return f"stage {stage.name} needs {as_size(round(needed))} of memory and {as_size(free)} are free"


def way_out(stage: Stage, needed: float, free: int, run: Run) -> str:
    """What a user can say instead, with numbers that have room."""
    c, parts = run.config, 2
    while needed / parts > ROOMY * free:
        parts *= 2
    fewer, block = max(2, c.batch_size // parts), max(1, c.runtime.block_size // parts)
    return WAYS_OUT[stage.name].format(block=block, fewer=fewer, parts=parts * c.accumulate)
