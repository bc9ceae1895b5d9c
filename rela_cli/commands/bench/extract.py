"""A prior's features: our stage's loop with its file, a bare loop over the network, and the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rela_cli.commands.bench import material
from rela_cli.commands.bench.contest import Bench, BenchRow, Comparison, Results, measured_row
from rela_cli.commands.bench.paper import OneView
from rela_cli.commands.bench.timing import Contestant, race, ratios, spread
from rela_cli.config.compose import compose
from rela_cli.data.batches.cache import Split
from rela_cli.machine.device import device_name, synchronize
from rela_cli.machine.precision import extracts_in
from rela_cli.priors.base import NetworkPrior
from rela_cli.priors.fitting import fitted_prior
from rela_cli.stages.extract import run_prior
from rela_cli.store.row_file import RowFileWriter

NAME = "extract"
LOADER_WORKERS = 2
FP16, FP32 = (f"runtime.extract_precision={name}" for name in ("fp16", "fp32"))
GPU_TARGET = 12_000.0  # images a second, CLIP ViT-B/16


class Work:
    """Some images and a prior, and the three ways to bring them together."""

    def __init__(self, bench: Bench, n: int, *words: str) -> None:
        pixels, labels = material.images(bench, n)
        self.pixels, self.data, self.path = pixels, material.stats(pixels), bench.folder / "features.safetensors"
        self.config = compose(["dataset=fake", *words])
        prior, self.device = fitted_prior(self.config, Split(pixels, labels), self.data)
        assert isinstance(prior, NetworkPrior)
        self.prior, self.block = prior, self.config.runtime.block_size

    def ours(self) -> Path:
        """Stage extract's loop, into its file."""
        with RowFileWriter(self.path, "features", len(self.pixels)) as features:
            size, title = self.data.size, "bench"
            for block in run_prior(self.prior, self.pixels, size, self.block, self.device, title):
                features.add(block)
        synchronize(self.device)
        return self.path

    def bare(self) -> Tensor:
        """The network alone, in the same precision, on blocks of its own size that lie ready on the device."""
        if not hasattr(self, "ready"):
            with torch.inference_mode():
                self.ready = [self.prior.preprocess(x.to(self.device)) for x in self.pixels.split(self.block)]
        dtype = extracts_in(self.config.runtime)
        half = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), half:
            features = [self.prior.backbone(block) for block in self.ready]
        synchronize(self.device)
        return torch.cat(features).float()

    def paper(self) -> Tensor:
        """Pillow images in loader workers, single precision, everything kept in a list."""
        from torchvision import transforms as T

        view = T.Compose([T.ToTensor(), T.Normalize(self.data.mean.tolist(), self.data.std.tolist())])
        loader = DataLoader(OneView(self.pixels, view), 128, num_workers=LOADER_WORKERS)
        with torch.no_grad():
            return torch.cat([self.prior.backbone(block.to(self.device)).cpu() for block in loader])

    def outcome(self, results: Results, peer: str) -> str:
        """How near our fp16 file comes to what a peer holds in single precision."""
        ours = load_file(results["ours"])["features"].float()
        cosine = F.cosine_similarity(ours, results[peer].float().cpu(), dim=1).min()
        return f"cosine of each image's features, ours (in an fp16 file) and theirs: {cosine:.6f} at least"


def run(bench: Bench) -> Iterator[BenchRow]:
    """An untrained ResNet-18 on the CPU; CLIP's ViT-B/16, untrained, on a GPU."""
    if "cpu" in bench.devices:
        n = bench.size(512, 32)
        work = Work(bench, n, "prior=random", f"prior.width={bench.size(64, 4)}", "runtime.device=cpu")
        contestants = [
            Contestant("ours", work.ours, is_ours=True),
            *(Contestant(name, getattr(work, name)) for name in ("bare", "paper")),
        ]
        title = f"prior=random, {n:,} images of 32 px, into a file"
        pairs = [Comparison("ours", name, title, None, "wall") for name in ("bare", "paper")]
        yield from bench.scores(NAME, contestants, pairs, work.outcome)
    if bench.has_gpu(NAME):
        yield from on_gpu(bench)


def on_gpu(bench: Bench, device: str = "cuda") -> Iterator[BenchRow]:
    """Images a second, in fp16, resized on the device and written to a file; the bare loop has them ready."""
    n, precision = bench.size(12_288, 8), FP16 if device == "cuda" else FP32
    words = bench.size(0, 1) * ("runtime.block_size=4",)
    work = Work(bench, n, "prior=clip_vitb16", "prior.weights=random", f"runtime.device={device}", precision, *words)
    contestants = [Contestant("ours", work.ours, is_ours=True), Contestant("bare", work.bare, is_ours=True)]
    records = race(contestants, bench.rounds, lambda who, error: None)
    rates = [spread(n / timing.wall for timing in records[name].rounds) for name in ("ours", "bare")]
    title = f"CLIP ViT-B/16, random weights, {n:,} images of 32 px, {device_name(device)}"
    outcome = work.outcome({name: record.result for name, record in records.items()}, "bare")
    text = f"both in {work.config.runtime.extract_precision}; bare loop {rates[1].median:,.0f} images/s; {outcome}"
    ratio = ratios(records["bare"], records["ours"], "wall")
    yield measured_row(NAME, title, "bare", ratio, rates[0], GPU_TARGET, "images/s", text)
