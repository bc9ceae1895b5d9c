"""Stage 2 of an ensemble: what its members have made, side by side. Nothing is extracted or fitted here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rela_cli.store.entries import Entry
from rela_cli.store.files import Facts
from rela_cli.store.row_file import RowFile, RowFileWriter, halved
from rela_cli.transports.base import column_order

ROWS_AT_A_TIME = 2048
DIGITS = 3  # behind the point, of a factor: what is beyond comes of the rounding of targets


def joined_features(members: Sequence[Entry]) -> Facts:
    """What the features of an ensemble cost and how wide they are; they lie with the members and are not copied."""
    manifests = [member.manifest or {} for member in members]
    spent = {key for facts in manifests for key in facts if key.startswith(("seconds", "flops"))}
    return {
        "feature_dim": sum(facts["feature_dim"] for facts in manifests),
        "precision": manifests[0]["precision"],
        "preprocessing": [facts.get("preprocessing") for facts in manifests],
        **{key: sum(facts.get(key, 0) for facts in manifests) for key in sorted(spent)},
        **({"views": manifests[0]["views"]} if "views" in manifests[0] else {}),
    }


def joined_targets(members: Sequence[Entry], features: Sequence[Entry], folder: Path) -> Facts:
    """<split>.safetensors with the targets of all members, (N, k_1 + k_2 + ...) fp16, map.safetensors with their maps.

    facts: as `transport` has them, the members' seconds and FLOPs included.
    """
    started = time.perf_counter()
    manifests = [member.manifest or {} for member in members]
    train = [RowFile(member.folder / "train.safetensors", "targets") for member in members]
    widths, ordered = [rows.shape[1] for rows in train], bool(manifests[0]["ordered"])
    columns, factors = column_order(widths, ordered), factors_of(train, ordered)
    each = torch.repeat_interleave(factors, torch.tensor(widths))[columns]
    for path in sorted(members[0].folder.glob("*.safetensors")):
        if path.stem != "map":
            rows = [RowFile(member.folder / path.name, "targets") for member in members]
            write_joined(rows, columns, each, folder / path.name)
    state = {"columns": columns, "factors": each}
    state["widths"] = torch.tensor([(entry.manifest or {})["feature_dim"] for entry in features])
    for number, member in enumerate(members):
        own = load_file(member.folder / "map.safetensors")
        state |= {f"{number}.{name}": value for name, value in own.items()}
    save_file(state, folder / "map.safetensors")
    own_facts = {"ordered": ordered, "per_feature": manifests[0].get("per_feature", 1)}
    dead = sum(facts["dead"] for facts in manifests)
    return {"dim": len(columns), "dead": dead, **own_facts, "factors": factors.tolist(), **spent(manifests, started)}


def joined_views(members: Sequence[Entry], targets: Entry, folder: Path) -> Facts:
    """The targets of light views side by side, in the order and with the factors of those of the clean images."""
    started = time.perf_counter()
    manifests = [member.manifest or {} for member in members]
    joined = load_file(targets.folder / "map.safetensors")
    rows = [RowFile(member.folder / "train.safetensors", "targets") for member in members]
    count = int(manifests[0]["views"])
    write_joined(rows, joined["columns"], joined["factors"], folder / "train.safetensors", count)
    save_file(load_file(members[0].folder / "boxes.safetensors"), folder / "boxes.safetensors")
    return {"views": count, "dim": len(joined["columns"]), **spent(manifests, started)}


def spent(members: Sequence[Facts], started: float) -> Facts:
    """Seconds and FLOPs of the members, and the seconds since `started`."""
    seconds = time.perf_counter() - started + sum(facts["seconds"] for facts in members)
    return {"seconds": seconds, "flops": sum(facts["flops"] for facts in members)}


def factors_of(train: Sequence[RowFile], ordered: bool) -> Tensor:
    """What each member's targets are multiplied by, so that all are as large as the first one's: (M,) float64.

    Measured by their mean square over the train images: of ordered ones over as many components as every member has,
    where whitened ones are equal already; else over all, so that each member has the same share of the whole.
    """
    common = min(rows.shape[1] for rows in train)
    sizes = [sum_of_squares(rows, common if ordered else rows.shape[1]) for rows in train]
    ratios = [round((sizes[0] / size) ** 0.5, DIGITS) if size and sizes[0] else 1.0 for size in sizes]
    return torch.tensor(ratios, dtype=torch.float64)


def sum_of_squares(rows: RowFile, width: int) -> float:
    """Over all rows and the first `width` columns."""
    return sum(float(block[:, :width].double().square().sum()) for block in rows.blocks(ROWS_AT_A_TIME))


def write_joined(rows: Sequence[RowFile], columns: Tensor, factors: Tensor, path: Path, views: int = 1) -> None:
    """Rows (N, views * k_m) of each member -> (N, views * k) in one file, a block at a time."""
    with RowFileWriter(path, "targets", len(rows[0])) as targets:
        for blocks in zip(*(one.blocks(max(1, ROWS_AT_A_TIME // views)) for one in rows), strict=True):
            side = torch.cat([block.double().unflatten(1, (views, -1)) for block in blocks], dim=2)
            targets.add(halved((side[..., columns] * factors).flatten(1).float()))


def read_features(entry: Entry, split: str) -> Tensor:
    """The features of a split, (N, D) float32; of an ensemble side by side, each member's as large as another's.

    A member's features are divided by their root mean square norm over the train images: otherwise the cosine of two
    images would be that of the prior with the largest numbers.
    """
    parts = [load_file(folder / f"{split}.safetensors")["features"].float() for folder in entry.folders]
    if len(parts) == 1:
        return parts[0]
    files = [RowFile(folder / "train.safetensors", "features") for folder in entry.folders]
    norms = [(sum_of_squares(rows, rows.shape[1]) / len(rows)) ** 0.5 for rows in files]
    return torch.cat([part / (norm or 1.0) for part, norm in zip(parts, norms, strict=True)], dim=1)
