"""X'X without its lower half, which is the upper one mirrored: 7 of 16 of the products of 1,024 columns are saved."""

from __future__ import annotations

from torch import Tensor

PANEL_COLUMNS = 128  # of a product: narrower panels multiply more slowly than they save


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add x'x of (n, D) to (D, D), of any precision; below the panels' diagonal that stays as it was.

    On a GPU all of it is added: one product is faster there than many small ones.
    """
    if x.is_cuda:
        total.addmm_(x.T, x)
        return
    for start in range(0, x.shape[1], PANEL_COLUMNS):
        total[start : start + PANEL_COLUMNS, start:] += x[:, start : start + PANEL_COLUMNS].T @ x[:, start:]


def mirrored(upper: Tensor) -> Tensor:
    """(D, D) -> the symmetric matrix of its upper triangle."""
    return upper.triu() + upper.triu(1).T
