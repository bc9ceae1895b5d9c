"""What can be raced: rows, their peers, and what a peer needs. Needs no torch, and imports no row."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.machinery import PathFinder

PEER_PACKAGES = {  # what has to be installed for a peer; peers without a line are made of torch and ourselves
    "torchvision-v1": ("torchvision", "PIL"),
    "torchvision-v2": ("torchvision",),
    "lightly": ("lightly",),
    "kornia": ("kornia",),
    "scikit-learn": ("sklearn",),
}


@dataclass(frozen=True)
class RowInfo:
    """A row's name is its module's. `gpu` says what it measures where there is one."""

    does: str
    peers: tuple[str, ...]
    gpu: str = ""
    is_long: bool = False  # a quarter of an hour: only where it is named


BENCH_ROWS = {
    "augment": RowInfo(
        "two 32x32 views an image, one thread, eager and compiled",
        ("torchvision-v1", "torchvision-v2", "lightly", "kornia"),
        "the same on the device",
    ),
    "ingest": RowInfo(
        "a folder of JPEGs to the resident cache, and its second start", ("torchvision-v1", "first-start")
    ),
    "extract": RowInfo("a prior's features of decoded images, to a file", ("bare", "paper"), "CLIP ViT-B/16, images/s"),
    "transport": RowInfo("400,000 x 1,024 features to whitened targets, from file to file", ("paper", "scikit-learn")),
    "step": RowInfo(
        "a step of phase 1 against one of BYOL",
        ("byol", "paper", "lightly"),
        "ResNet-18, 32 px, pairs/s at batch 128 and 512: phase 1 against the paper's loop, BYOL against lightly's",
    ),
    "train": RowInfo("data and step: width-8 ResNet-18, batch 128", ("paper",)),
    "distill": RowInfo(
        "top-1 at equal processor seconds; only where it is named: a quarter of an hour; rounds are seeds, 3 at most",
        ("live", "lightly-train"),
        is_long=True,
    ),
    "probe": RowInfo("a linear classifier on 50,000 x 512 features", ("paper",)),
    "knn": RowInfo("10,000 queries among 50,000 x 512 features", ("scikit-learn",)),
    "startup": RowInfo("`rela --help`, and the answer to a wrong config", ("python",)),
}
PEERS = tuple(dict.fromkeys(peer for row in BENCH_ROWS.values() for peer in row.peers))


def missing_package(peer: str) -> str:
    """The package that a peer lacks here, or nothing."""
    return next((name for name in PEER_PACKAGES.get(peer, ()) if PathFinder.find_spec(name) is None), "")
