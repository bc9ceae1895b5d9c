"""What memory a run will take, stage by stage and term by term, before any of it is taken.

Networks are sent through one step on torch's meta device: shapes without numbers, so a batch of any size is counted to
the byte in a second, and no memory is touched. What lies beside the networks is arithmetic. docs/scaling.md has the
terms beside what runs really took.

Sizes are bytes; N images, B batch, S pixels a side, D width of the prior's features, k of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from rela_cli.config.lengths import components_kept
from rela_cli.config.parts import import_target, instantiate
from rela_cli.config.schema import PRETRAINED, RANDOM, Config, Part
from rela_cli.data.batches.cache import ImageStats
from rela_cli.data.batches.loader import BATCHES_AHEAD, SAMPLE_IMAGES
from rela_cli.data.batches.views import Augment
from rela_cli.errors import RelaError
from rela_cli.evaluation.measures import QUERY_BLOCK
from rela_cli.learners.build import build_backbone, feature_dim
from rela_cli.machine import memory
from rela_cli.machine.device import pick_device
from rela_cli.numerics.logistic import MANY
from rela_cli.optim import build_optimizer, memory_bytes
from rela_cli.pipeline.counting import count_work, counted_for
from rela_cli.pipeline.preflight import BOX_BYTES
from rela_cli.pipeline.run import Run
from rela_cli.pipeline.terms import DEVICE, MAPPED, PROCESS, Stage, Taken, Term
from rela_cli.pipeline.tokens import MapSizes, map_sizes
from rela_cli.priors.base import Prior
from rela_cli.stages.transport import ROWS_AT_A_TIME
from rela_cli.training.trainee import Sizes, Trainee, memory_format
from rela_cli.transports.base import Transport, matched_width
from rela_cli.transports.pca import PCA
from rela_cli.weights.locate import located

MATRICES = 5  # D x D float64 of an eigendecomposition: covariance, eigenvectors, LAPACK's room for two, the map
SUMS = 2  # D x D float64 while blocks are taken in: of all blocks, and of one
FEATURE_COPIES = 3  # that a probe holds: as they came, standardised, and the pieces they are put together from
DRAW = 48  # bytes an image while an epoch's subset is drawn (docs/scaling.md)
HALF, WORD, DOUBLE = 2, 4, 8  # bytes of a stored feature, of a float32, of a float64
FEATURES = 768  # width of a prior that cannot be built here, and whose card does not say
UNKNOWN_SIZE = 32  # pixels a side where all images have to be decoded to know
FITTED_TO = 16  # random images that a prior is fitted to, to see what that takes
WARM_BYTES = 80e6  # code of kernels once they are used, and what first uses leave in the heap: measured 70 to 190 MB


@dataclass(frozen=True)
class Shape:
    """The sizes of a run that its memory depends on."""

    train: int
    test: int
    size: int  # pixels a side that a network is shown
    side: int  # that images have in memory, or are decoded to
    on_disk: bool
    classes: int | None


@dataclass(frozen=True)
class Outlook:
    """What extracting by a prior takes."""

    features: int  # D
    weights: float
    fit: Taken
    block: Taken


class Footprint:
    """The memory of one run. `libraries` is what a process holds that has imported everything and done nothing."""

    def __init__(self, config: Config, shape: Shape) -> None:
        self.config, self.shape = config, shape
        self.steps: dict[int, Taken] = {}
        build_optimizer(config.optimizer, [nn.Parameter(torch.zeros(1))])  # which imports torch's compiler
        import_target(config.learner), import_target(config.method), import_target(config.prior)
        self.libraries = memory.held()
        self.members = [Footprint(replace(config, prior=member), shape) for member in config.prior.members]

    # ------------------------------------------------------------------------------------------ the networks

    @cached_property
    def matched(self) -> int:
        """Components that the learner is matched to: by its features, where the first components are the best."""
        mapping: Transport = instantiate(self.config.transport)
        width = feature_dim(build_backbone(self.config.learner, self.config.seed, self.shape.size))
        return matched_width(width, self.targets, mapping.ordered, mapping.per_feature)

    @cached_property
    def tokens(self) -> MapSizes | None:
        """The feature maps of extract.tokens=true; None without."""
        shape = self.shape
        return map_sizes(self.config, shape.train, shape.size, self.prior) if self.config.has_tokens else None

    def trainee(self) -> Trainee:
        """The learner with its method and the matching, as stage train has it."""
        shape, matched = self.shape, self.matched if self.targets else None
        sizes = Sizes(shape.size, matched, shape.classes, self.tokens.matched if self.tokens else None)
        return Trainee(self.config, sizes).train()

    @property
    def images_a_pass(self) -> int:
        """Images of a process that are in work at a time: its share of a batch, or of a part of one."""
        return max(2, self.config.batch_size // self.config.runtime.devices // self.config.accumulate)

    @cached_property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(parameter.numel() for parameter in self.trainee().parameters() if parameter.requires_grad)

    @property
    def phases(self) -> tuple[int, ...]:
        return (2,) if self.config.is_plain else (1, 2)

    def step(self, phase: int) -> Taken:
        """Views, forward and backward pass of one part of a batch; gradients included."""
        if phase not in self.steps:
            self.steps[phase] = counted_for(
                self.images_a_pass, lambda network, n, device: self.take_step(network, n, device, phase), self.trainee
            )
        return self.steps[phase]

    def take_step(self, trainee: Trainee, n: int, device: str, phase: int) -> None:
        """What a training step does until the gradients are there, on images of nothing."""
        shape, method = self.shape, trainee.method
        views = [self.config.matching.view] * 2 if phase == 1 else list(method.views)
        images = torch.zeros(n, 3, shape.side, shape.side, dtype=torch.uint8, device=device)
        grey, rows = torch.full((3,), 0.5, device=device), torch.arange(n, device=device)
        shown = [
            Augment(view, shape.size, grey, grey, 0, number, True)(images, rows, 0) for number, view in enumerate(views)
        ]
        targets: Any = torch.zeros(n, self.matched, device=device) if phase == 1 else None
        targets = self.tokens.beside(targets, rows, shape.size) if phase == 1 and self.tokens else targets
        wants_labels = phase == 2 and method.uses_labels
        trainee(shown, targets, torch.zeros(n, dtype=torch.long, device=device) if wants_labels else None).backward()

    @property
    def features(self) -> int:
        """D; what the prior's card says where the prior cannot be built here; 0 without a prior."""
        if self.config.is_plain:
            return 0
        if self.members:
            return sum(member.features for member in self.members)
        return self.outlook.features if self.outlook else self.config.prior.card.features or FEATURES

    @property
    def targets(self) -> int:
        """k that are kept; 0 without a prior."""
        if self.members:
            return sum(member.targets for member in self.members)
        return components_kept(self.config.transport, self.features)

    @cached_property
    def outlook(self) -> Outlook | None:
        """None where the prior cannot be built here: its package or its file is missing."""
        try:
            prior = self.prior()
        except RelaError:
            return None
        fit, weights, made = fitting(prior, self.shape.size), bytes_of(prior), iter([prior])
        block = self.look(lambda: next(made, None) or self.prior(), torch.uint8)
        return Outlook(prior.feature_dim, weights, fit, block)

    def prior(self) -> Prior:
        """The prior; untrained where its weights would have to be fetched, for these take the same room."""
        part, data = weightless(self.config.prior), ImageStats.grey(self.shape.size)
        prior: Prior = instantiate(part, data=data, allow=self.config.allow)
        return prior.eval()

    @property
    def flops(self) -> float:
        """FLOPs of a step of the method, an image; with matching.targets=live also the prior's on both views."""
        own = self.step(2).flops / self.images_a_pass
        if not (self.config.is_live and self.outlook):
            return own
        return own + 2 * self.outlook.block.flops / self.config.runtime.block_size

    def live_looks(self) -> list[Taken]:
        """With matching.targets=live: the prior looking at one view of each image in work, both views beside it."""
        if not (self.config.is_live and self.outlook):
            return []
        views = 2 * self.images_a_pass * 3 * WORD * self.shape.size**2
        look = self.look(self.prior, torch.uint8, self.images_a_pass)
        return [replace(look, peak=look.peak + views)]

    def glances(self) -> list[Taken]:
        """The backbone looking at a block of images while it trains, where it is asked to (training/watch.py)."""
        return [self.block_look] if self.config.runtime.eval_every_epochs else []

    @cached_property
    def block_look(self) -> Taken:
        """The backbone looking at one block of images, for a probe or while it trains."""
        return self.look(lambda: self.trainee().method.backbone, torch.float32)

    def look(self, make: Callable[[], nn.Module], dtype: torch.dtype, images: int | None = None) -> Taken:
        """A network looking at some images, else at one block of them, without gradients."""

        def work(network: nn.Module, n: int, device: str) -> None:
            with torch.inference_mode():
                network.eval()(torch.zeros(n, 3, self.shape.size, self.shape.size, device=device).to(dtype))

        return counted_for(images or self.config.runtime.block_size, work, make)

    # -------------------------------------------------------------------------------------------- the stages

    def stages(self) -> list[Stage]:
        """Every stage that the run has, in order."""
        own = [self.extract(), self.transport()] if self.config.extracts else []
        return [self.images(), *own, self.train(), self.probe()]

    def stage(self, name: str, *terms: Term) -> Stage:
        always = (Term("libraries", self.libraries, PROCESS), Term("first use of them", WARM_BYTES, PROCESS))
        return Stage(name, (*always, *(term for term in terms if term.size)))

    def images(self) -> Stage:
        """All pixels of a split and their bytes on the way to the disk, or the sample for the statistics."""
        shape = self.shape
        most = min(SAMPLE_IMAGES, shape.train) if shape.on_disk else max(shape.train, shape.test)
        return self.stage("images", Term("decoded images, twice", 2 * most * 3 * shape.side**2))

    def pixels(self, images: int, at_a_time: int) -> list[Term]:
        """Decoded images: mapped from the cache, or those decoded ahead, so many at a time."""
        side = self.shape.side
        if self.shape.on_disk:
            return [Term("images decoded ahead", (BATCHES_AHEAD + 1) * at_a_time * 3 * side**2)]
        return [Term("images", images * 3 * side**2, MAPPED)]

    def extract(self) -> Stage:
        """The prior over blocks of images; fitted first, which is another peak. Of an ensemble one after the other."""
        if self.members:
            return max((member.extract() for member in self.members), key=Stage.total)
        shape, outlook = self.shape, self.outlook
        pixels = self.pixels(shape.train + shape.test, self.config.runtime.block_size)
        if outlook is None:
            return self.stage("extract", *pixels)
        seen = Term("images to fit to", SAMPLE_IMAGES * 3 * shape.side**2 if shape.on_disk and outlook.fit.peak else 0)
        block = outlook.block.terms(f"a block of {self.config.runtime.block_size} images")
        terms = outlook.fit.terms("fitting the prior") if outlook.fit.peak > outlook.block.peak else block
        return self.stage("extract", Term("weights", outlook.weights, DEVICE), *terms, seen, *pixels)

    def transport(self) -> Stage:
        """Features in blocks, of which the first is taken in float64; then the eigenvectors of their covariance."""
        if self.members:
            return max((member.transport() for member in self.members), key=Stage.total)
        shape, tokens = self.shape, self.tokens
        width = max(self.features, tokens.channels if tokens else 0)
        rows = Term("a block of features", min(ROWS_AT_A_TIME, shape.train) * width * (HALF + 2 * DOUBLE))
        stored = max(HALF * shape.train * self.features, tokens.feature_bytes if tokens else 0)
        features = Term("features", stored, MAPPED)
        if not issubclass(import_target(self.config.transport), PCA):
            return self.stage("transport", rows, features)
        sums = Term("sums of its products", SUMS * DOUBLE * width**2)
        eigen = Term("covariance and eigenvectors", MATRICES * DOUBLE * width**2)
        return self.stage("transport", *max([rows, sums], [eigen], key=bytes_in), features)

    def train(self) -> Stage:
        """A step of the phase that takes more, or a checkpoint, which is written between two steps."""
        trainee, shape = self.trainee(), self.shape
        weights, averages = bytes_of(trainee), sum(map(bytes_of, trainee.averages()))
        trained = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
        optimizer = memory_bytes(self.config.optimizer, trained)
        views = self.config.extract.views if self.config.has_views else 0
        steps = [
            (f"activations and gradients of {self.images_a_pass} images", step) for step in map(self.step, self.phases)
        ]
        looks = [("the prior's look at views", look) for look in self.live_looks()]
        glances = [(f"a block of {self.config.runtime.block_size} images", look) for look in self.glances()]
        name, step = max((*steps, *looks, *glances), key=lambda named: named[1].peak)
        return self.stage(
            "train",
            Term("weights", weights - averages, DEVICE),
            Term("running average", averages, DEVICE),
            Term("optimizer", optimizer, DEVICE),
            Term("a copy of the weights while steps are tried", max(0, weights - optimizer), DEVICE),
            Term("the prior", self.outlook.weights if self.config.is_live and self.outlook else 0, DEVICE),
            *self.stepping_or_saving(
                step.terms(name), self.copied(trainee, optimizer / sum(p.nbytes for p in trained))
            ),
            Term("drawing an epoch", DRAW * shape.train),
            *self.pixels(shape.train, self.config.batch_size // self.config.runtime.devices),
            Term("targets", HALF * shape.train * self.targets * (views or 1), MAPPED),
            Term("targets of tokens", self.tokens.target_bytes if self.tokens else 0, MAPPED),
            Term("where views are cut", BOX_BYTES * shape.train * views),
        )

    def stepping_or_saving(self, stepping: list[Term], copied: float) -> list[Term]:
        """What takes more: a step, or the copies that a checkpoint takes, in the heap that steps have left."""
        if copied <= bytes_in(stepping):
            return stepping
        return [Term("a checkpoint's copies", copied), *stepping[1:]]

    def copied(self, trainee: Trainee, memories: float) -> float:
        """Bytes of the tensors that a checkpoint has to copy: on a GPU all; else those that do not lie in one piece.

        memories: tensors that the optimizer keeps of each parameter, which lie as it does.
        """
        device = pick_device(self.config.runtime)
        trainee.to(memory_format=memory_format(trainee, device, self.shape.size))
        return sum(
            tensor.nbytes * (1 + memories * tensor.requires_grad)
            for tensor in (*trainee.parameters(), *trainee.buffers())
            if device.type == "cuda" or not tensor.is_contiguous()
        )

    def probe(self) -> Stage:
        """Representations of all images, and what protocols make of them."""
        shape, network = self.shape, self.trainee().method.backbone
        width, classes = int(network.feature_dim), shape.classes or 2  # type: ignore[arg-type]
        features = Term("features", FEATURE_COPIES * (shape.train + shape.test) * width * WORD)
        curved = classes * width**2 if classes * width**2 <= MANY else width**2
        curvature = Term("curvature", 2 * WORD * curved if "lbfgs" in self.config.probe.protocols else 0)
        near = Term("neighbours", QUERY_BLOCK * shape.train * WORD if "knn" in self.config.probe.protocols else 0)
        looked = self.block_look.terms(f"a block of {self.config.runtime.block_size} images")
        weights = Term("weights", bytes_of(network), DEVICE)
        return self.stage(
            "probe",
            weights,
            *looked,
            features,
            curvature,
            near,
            *self.pixels(shape.train + shape.test, self.config.runtime.block_size),
        )


def fitting(prior: Prior, size: int) -> Taken:
    """What fitting a prior takes; most have nothing to fit."""
    if type(prior).fit is Prior.fit:
        return Taken(0, 0)
    images = torch.randint(0, 256, (FITTED_TO, 3, size, size), dtype=torch.uint8)
    return count_work(lambda: prior.fit(images), prior)


def of_run(run: Run) -> Footprint:
    """The memory of a run, from the sizes of its data and its config."""
    dataset, size = run.dataset, run.shown_size or UNKNOWN_SIZE
    others = sum(dataset.count(split) for split in dataset.splits if split != "train")
    classes = len(dataset.classes) if dataset.classes else None
    side = dataset.side or size
    return Footprint(run.config, Shape(run.lengths.train_samples, others, size, side, dataset.on_disk, classes))


def weightless(prior: Part) -> Part:
    """The prior with random weights if its own would have to be fetched; else with its files named by their paths."""

    def light(one: Part) -> Part:
        if one.options.get("weights") == PRETRAINED:
            return replace(one, options={**one.options, "weights": RANDOM})
        return located(one)

    return prior.each(light)


def bytes_in(terms: Iterable[Term]) -> float:
    """What terms take together."""
    return sum(term.size for term in terms)


def bytes_of(module: nn.Module) -> int:
    """Its parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
