"""What the tables hold: sections of columns, for each profile. Nothing is run here.

full is the paper's protocol (presets conf/experiment/table1_*); mini is what two CPU cores do in half an hour
(cifar10_mini and its sisters, fewer epochs); smoke only shows that a table comes out (the digits, a minute or two).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

PROFILES = ("mini", "full", "smoke")
MINI_EPOCHS = 16  # 624 steps at budget 0.5, where plain SimCLR ends 14 points above its untrained learner
EQUAL_POINTS = 2.0  # points within which two ways count as equal: about twice the deviation between seeds in mini
MINI_SHORT_EPOCHS = 8  # where more than 50 runs have half an hour
METHODS = ("byol", "dino", "simclr", "simsiam", "moco_v3", "barlow_twins", "vicreg", "swav", "supervised")
RECIPE = {  # changes of the defaults, one at a time and together; docs/recipe.md
    "default": (),
    "power 0.5": ("transport.power=0.5",),
    "twice the components": ("transport.dims=twice",),
    "no colour": ("matching=geometric",),
    "never": ("switch=never",),
    "no colour, never": ("matching=geometric", "switch=never"),
    "best, but switching": ("transport.power=0.5", "transport.dims=twice", "matching=geometric"),
    "best": ("transport.power=0.5", "transport.dims=twice", "matching=geometric", "switch=never"),
}
TYPICAL_PRIORS = {"mini": "embedded", "full": "clip_rn50", "smoke": "patches"}  # by profile, where a table has but one
NO_TEACHERS = ("prior=none", "prior=random", "prior=random_learner")
LIVE = " live"  # how the name of a column with live targets ends
TRANSPORTS = ("whitening", "pca", "zca", "standardize", "identity", "random_projection")


@dataclass(frozen=True)
class TableColumn:
    """Runs that differ in budget and seed only.

    data: the dataset they need, by its key in `runs.LAYOUTS`. teacher: the column whose first seed is the prior.
    """

    name: str
    words: tuple[str, ...]
    data: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    teacher: TableColumn | None = None


@dataclass(frozen=True)
class Section:
    """Columns that one printed table compares."""

    title: str
    columns: tuple[TableColumn, ...]


@dataclass(frozen=True)
class Claim:
    """`better` at `budget` above `than` at `than_budget`, as the paper has it; names of columns in `section`.

    margin: points; with it the claim is that the two are equivalent within so many.
    """

    text: str
    section: int
    better: str
    budget: float
    than: str
    than_budget: float
    margin: float | None = None


@dataclass(frozen=True)
class PaperTable:
    """Sections, and what is claimed about them: by the paper, unless `whose` says something else."""

    name: str
    sections: tuple[Section, ...]
    claims: tuple[Claim, ...] = ()
    whose: str = "The paper's claims"


# ------------------------------------------------------------------------------------------------- what columns share


@dataclass(frozen=True)
class SharedSettings:
    """What all columns of a table have in common."""

    words: tuple[str, ...]
    data: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    plain: str  # how the plain method is called

    def column(
        self, name: str, *words: str, budgets: tuple[float, ...] | None = None, teacher: TableColumn | None = None
    ) -> TableColumn:
        return TableColumn(name, (*self.words, *words), self.data, budgets or self.budgets, self.seeds, teacher)

    def priors(self, **choices: str) -> list[TableColumn]:
        """One column for each prior of conf/prior."""
        return [self.column(name, f"prior={prior}") for name, prior in choices.items()]

    def taught(self, name: str, teacher: TableColumn) -> TableColumn:
        """A column whose prior is a run of ours."""
        return self.column(name, "prior=rela_run", teacher=teacher)

    def framed(self, columns: list[TableColumn]) -> tuple[TableColumn, ...]:
        """Plain before them, plain on everything after them."""
        star = self.column(f"{self.plain}*", "prior=none", budgets=(1.0,))
        return (self.column(self.plain, "prior=none"), *columns, star)


SMOKE = SharedSettings(("experiment=digits_smoke",), "digits", (0.5,), (0, 1), "SimCLR")


def mini(data: str, budgets: tuple[float, ...] = (0.2, 0.5), epochs: int = MINI_EPOCHS) -> SharedSettings:
    """cifar10_mini's learner and method on 5,000 images of a dataset, shown at 32 px."""
    sizes = ("dataset.image_size=32", "dataset.test_limit=10000") if data in ("tin", "in1k") else ()
    words = ("experiment=cifar10_mini", f"epochs={epochs}", "runtime.eval_every_epochs=4", *sizes)
    return SharedSettings(words, data, budgets, (0, 1, 2), "SimCLR")


def full(data: str, budgets: tuple[float, ...] = (0.1, 0.2, 0.5)) -> SharedSettings:
    """The reference protocol."""
    return SharedSettings((f"experiment=table1_{data}",), data, budgets, (0,), "BYOL")


def teacher(data: str, protocol: Callable[[str], SharedSettings]) -> TableColumn:
    """The plain method on all of a dataset: a prior of the paper, trained when it is not there."""
    shared = protocol(data)
    return TableColumn(f"{shared.plain} on {data}", (*shared.words, "prior=none"), data, (1.0,))


# ---------------------------------------------------------------------------------------------------------- the tables


def table1(data: str, profile: str) -> PaperTable:
    """The paper's Table 1 on one dataset: budgets by priors."""
    if profile == "smoke":
        shared, columns = SMOKE, SMOKE.priors(patches="patches")
    elif profile == "mini":
        shared = mini(data)
        columns = shared.priors(random="random", patches="patches", embedded="embedded")
        columns.append(shared.column("embedded, best", "prior=embedded", *RECIPE["best"]))
        columns.append(shared.taught("CF10-T", teacher("cifar10", mini)))
    else:
        shared = full(data)
        taught = {"CF10-T": "cifar10", "CF100-T": "cifar100", "TIN-T": "tin", "IN1K-T": "in1k"}
        columns = shared.priors(random="random_learner")
        columns += [shared.taught(name, teacher(source, full)) for name, source in taught.items()]
        columns += [shared.column("CLIP RN50", "prior=clip_rn50")]
    section = Section(f"Table 1, {data}, {profile}", shared.framed(columns))
    best = columns[-1].name
    claims = [
        Claim(f"{best} at {b:.0%} of the data is above the plain method there", 0, best, b, shared.plain, b)
        for b in shared.budgets
    ]
    half = shared.budgets[-1]
    star = f"{shared.plain}*"
    claims.append(Claim(f"{best} at {half:.0%} is above {shared.plain} on everything", 0, best, half, star, 1.0))
    claims.append(Claim(f"random at {half:.0%} is above the plain method there", 0, "random", half, shared.plain, half))
    names = {column.name for column in columns}
    return PaperTable(f"table1-{data}", (section,), tuple(claim for claim in claims if claim.better in names))


def headline(profile: str) -> PaperTable:
    """The abstract's two claims; in small: a prior that saw much more, and one of another, smaller network."""
    shared, strong, weak = headline_priors(profile)
    plain, low, high = shared.plain, shared.budgets[0], shared.budgets[-1]
    above = f"{strong.name} at {high:.0%} is above {plain} on everything (abstract)"
    there = f"{weak.name} at {low:.0%} is above {plain} there (abstract: by 7.7 points)"
    equal = f"{weak.name} at {high:.0%} is equivalent to {plain} on everything, within {EQUAL_POINTS:g} points"
    claims = (
        Claim(above, 0, strong.name, high, f"{plain}*", 1.0),
        Claim(there, 0, weak.name, low, plain, low),
        Claim(equal, 0, weak.name, high, f"{plain}*", 1.0, EQUAL_POINTS),
    )
    return PaperTable("table-headline", (Section(f"Headline, {profile}", shared.framed([strong, weak])),), claims)


def headline_priors(profile: str) -> tuple[SharedSettings, TableColumn, TableColumn]:
    """What the runs share, the strong prior, and the weak one."""
    if profile == "full":
        shared = full("in1k", (0.1, 0.5))
        teachers = teacher("cifar10", full)
        return shared, shared.column("CLIP ViT-B/16", "prior=clip_vitb16"), shared.taught("CF10-T", teachers)
    if profile == "mini":
        shared = mini("cifar10", (0.1, 0.5))
        taught = shared.taught("CF10-T", teacher("cifar10", mini))
        return shared, shared.column("embedded", "prior=embedded"), taught
    return SMOKE, SMOKE.column("patches", "prior=patches"), SMOKE.column("random", "prior=random_learner")


def methods(profile: str) -> PaperTable:
    """Every method, plain and with ReLA."""
    names = ("simclr", "byol") if profile == "smoke" else METHODS
    columns: list[TableColumn] = []
    claims: list[Claim] = []
    for name in names:
        shared = method_protocol(name, profile)
        prior = TYPICAL_PRIORS[profile]
        columns += [shared.column(name, "prior=none"), shared.column(f"{name}, {prior}", f"prior={prior}")]
        budget = shared.budgets[0]
        claims.append(Claim(f"ReLA helps {name}", 0, f"{name}, {prior}", budget, name, budget))
    if profile == "mini":  # matching to the end: no method has a part in it
        shared = method_protocol("simclr", profile)
        columns.append(shared.column("embedded, best", "prior=embedded", *RECIPE["best"]))
    return PaperTable("table-methods", (Section(f"Methods, {profile}", tuple(columns)),), tuple(claims))


def method_protocol(name: str, profile: str) -> SharedSettings:
    """A method with what lets it learn at the profile's size."""
    if profile == "smoke":
        return SharedSettings((*SMOKE.words, f"method={name}"), "digits", (0.5,), (0,), name)
    if profile == "full":
        return SharedSettings((*full("cifar10").words, f"method={name}"), "cifar10", (0.5,), (0,), name)
    preset = "cifar10_mini" if name == "simclr" else f"cifar10_mini_{name}"
    words = (f"experiment={preset}", f"epochs={MINI_SHORT_EPOCHS}", "runtime.eval_every_epochs=4")
    return SharedSettings(words, "cifar10", (0.5,), (0, 1, 2), name)


def learners(profile: str) -> PaperTable:
    """ReLA under other networks."""
    vit = ("learner=vit_s16", "learner.patch_size=4")
    choices: dict[str, tuple[str, ...]] = {
        "ResNet-18": ("learner=resnet18",),
        "ResNet-50": ("learner=resnet50",),
        "ResNet-101": ("learner=resnet101",),
        "ViT-S": vit,
        "MobileNet": ("learner=mobilenet_v3",),
    }
    if profile == "full":
        sizes = dict.fromkeys(("ResNet-18", "ResNet-50", "ResNet-101"), ("learner.width=64",))
        shared = full("cifar10", (0.5,))
    elif profile == "mini":
        small = ("learner.width=4",)
        sizes = {"ResNet-18": ("learner.width=8",), "ResNet-50": small, "ResNet-101": small}
        choices["ViT-S"] = ("learner=timm", "learner.model=test_vit")
        choices["MobileNet"] = ("learner=timm", "learner.model=mobilenetv3_small_050")
        shared = mini("cifar10", (0.2,))
    else:
        choices, sizes = {"ResNet-18": ("learner=resnet18",), "MobileNet": ("learner=mobilenet_v3",)}, {}
        shared = SMOKE
    prior, columns = TYPICAL_PRIORS[profile], []
    for name, words in choices.items():
        stem = ("learner.stem=cifar",) if name.startswith("ResNet") else ()
        own = (*words, *stem, *sizes.get(name, ()))
        columns += [shared.column(name, "prior=none", *own), shared.column(f"{name}, {prior}", f"prior={prior}", *own)]
    budget = shared.budgets[0]
    claims = tuple(Claim(f"ReLA helps {n}", 0, f"{n}, {prior}", budget, n, budget) for n in choices)
    return PaperTable("table-learners", (Section(f"Learners, {profile}", tuple(columns)),), claims)


def ablation(profile: str) -> PaperTable:
    """One thing changed at a time: transport, transfer layer, switch, budget."""
    prior = TYPICAL_PRIORS[profile]
    small = mini("cifar10", (0.5,), MINI_SHORT_EPOCHS)
    shared = {"mini": small, "full": full("cifar10", (0.5,)), "smoke": SMOKE}[profile]
    given = f"prior={prior}"
    chosen = TRANSPORTS[:2] if profile == "smoke" else TRANSPORTS
    transports = [shared.column(t, given, f"transport={t}") for t in chosen]
    transfers = [shared.column(t, given, f"matching.transfer={t}") for t in ("trained", "frozen")]
    rules = ("switch=adaptive", "switch=never", "switch=fixed switch.at=0.5", "switch=fixed switch.at=0.25")
    switches = [shared.column(rule, given, *rule.split()) for rule in rules]
    budgets = (0.1, 0.2, 0.5, 1.0) if profile != "smoke" else (0.5, 1.0)
    lengths = [shared.column("plain", "prior=none", budgets=budgets), shared.column(prior, given, budgets=budgets)]
    if profile == "mini":
        lengths.append(shared.column("embedded, best", given, *RECIPE["best"], budgets=budgets))
    parts = {"Transport": transports, "Transfer layer": transfers, "Switch": switches, "Budget": lengths}
    return PaperTable("table-ablation", tuple(Section(f"{k}, {profile}", tuple(v)) for k, v in parts.items()))


def recipe(profile: str) -> PaperTable:
    """What a recipe for one strong prior changes of the defaults; with a section for each prior."""
    shared = {"mini": mini("cifar10", (0.5,)), "full": full("cifar10", (0.5,)), "smoke": SMOKE}[profile]
    shared = shared if profile == "smoke" else replace(shared, seeds=(0, 1, 2, 3, 4))
    priors = {"mini": ("embedded", "patches"), "full": ("clip_rn50",), "smoke": ("patches",)}[profile]
    sections, claims = list[Section](), list[Claim]()
    for number, prior in enumerate(priors):
        columns = [shared.column(f"{name} with {prior}", f"prior={prior}", *words) for name, words in RECIPE.items()]
        sections.append(Section(f"Recipe with {prior}, {profile}", tuple(columns)))
        claims += [
            Claim(f"{column.name} is above the default", number, column.name, 0.5, columns[0].name, 0.5)
            for column in columns[1:]
        ]
    return PaperTable("table-recipe", tuple(sections), tuple(claims), "What each change is worth")


def with_live(table: PaperTable) -> PaperTable:
    """Beside each column with a trained prior, the same with live targets: the prior looks at every view of phase 1."""
    sections = []
    for section in table.sections:
        pairs = [[column, *([live_twin(column)] if has_teacher(column) else [])] for column in section.columns]
        sections.append(replace(section, columns=tuple(column for pair in pairs for column in pair)))
    return replace(table, sections=tuple(sections))


def has_teacher(column: TableColumn) -> bool:
    """Whether the prior of a column is one that people would distil from: untrained networks are not."""
    return any(word.startswith("prior=") and word not in NO_TEACHERS for word in column.words)


def live_twin(column: TableColumn) -> TableColumn:
    """The runs of a column, with live targets."""
    return replace(column, name=column.name + LIVE, words=(*column.words, "matching.targets=live"))


TABLES: dict[str, Callable[[str], PaperTable]] = {
    **{f"table1-{data}": partial(table1, data) for data in ("cifar10", "cifar100", "tin", "in1k")},
    "table-headline": headline,
    "table-methods": methods,
    "table-learners": learners,
    "table-ablation": ablation,
    "table-recipe": recipe,
}
