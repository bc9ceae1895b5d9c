"""Measures of representations that need no training: kNN, rank, spread and similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.distributed import ranks

QUERY_BLOCK = 1024  # queries at a time, so that memory does not grow with their number


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of (N, D) features (RankMe, Garrido et al. 2023)."""
    return rank_of(torch.linalg.svdvals((features - features.mean(0)).double()))


def deviation(features: Tensor) -> float:
    """Standard deviation a dimension of (N, D) features of length 1, times sqrt(D): 0 when all are alike, 1 at most.

    The measure of collapse of SimSiam (Chen and He 2020, section 4.1), of the representation.
    """
    return float(F.normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5)


def rank_of(values: Tensor) -> float:
    """exp of the entropy of singular values as shares of their sum: how many directions really count."""
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * torch.log(share + 1e-12)).sum()))


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear CKA of (N, D) and (N, E) features of the same samples, in [0, 1] (Kornblith et al. 2019, equation 3)."""
    x, y = ((z - z.mean(0)).double() for z in (one, other))
    norm = torch.linalg.matrix_norm
    return float(norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y)).clamp(min=1e-300))


def mutual_neighbours(one: Tensor, other: Tensor, k: int) -> float:
    """Share of a sample's k nearest by cosine that two representations have in common (Huh et al. 2024, section 2)."""
    near = [nearest_others(z, k) for z in (one, other)]
    return float((near[0][:, :, None] == near[1][:, None, :]).any(2).float().mean())


def nearest_others(features: Tensor, k: int) -> Tensor:
    """The k nearest by cosine of each of (N, D), itself left out: (N, k) indices."""
    unit = F.normalize(features.float() - features.float().mean(0), dim=1)
    found = []
    for start, block in enumerate(unit.split(QUERY_BLOCK)):
        similarity = block @ unit.T
        rows = torch.arange(len(block))
        similarity[rows, start * QUERY_BLOCK + rows] = -2
        found.append(similarity.topk(min(k, len(unit) - 1), dim=1).indices)
    return torch.cat(found)


def knn_logits(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Votes of the k nearest by cosine, weighted exp(cos / T) (Wu et al. 2018): (Q, D) -> (Q, classes).

    Of several ranks each looks at its share of the queries, in blocks, and all get all votes.
    """
    bank, k = F.normalize(bank, dim=1), min(k, len(bank))
    blocks = F.normalize(queries, dim=1).split(QUERY_BLOCK)
    rounds = -(-len(blocks) // ranks.world())
    own = [*blocks[ranks.rank() :: ranks.world()], queries[:0]][:rounds]
    votes = []
    for block in own:
        similarity, nearest = (block @ bank.T).topk(k, dim=1)
        weights = torch.softmax(similarity / temperature, dim=1)  # exp(cos / T) but for a factor a query, at any T
        own_votes = torch.zeros(len(block), classes).scatter_add_(1, labels[nearest], weights)
        votes += ranks.gather_rows(own_votes, QUERY_BLOCK)
    return torch.cat(votes)


def knn_top1(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, k: int, temperature: float) -> float:
    """Share of queries whose weighted vote is right."""
    votes = knn_logits(bank, labels, queries, k, temperature, int(labels.max()) + 1)
    return float((votes.argmax(1) == truth).float().mean())
