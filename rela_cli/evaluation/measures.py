"""Measures of representations that need no training: kNN, rank, spread and similarity; each where its tensors lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.distributed import ranks

RANKME_EPSILON, LIDAR_DELTA = 1e-7, 1e-4  # of the two papers

RECALLS = (1, 5, 10)

QUERY_BLOCK = 1024  # queries at a time, so that memory does not grow with their number


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of (N, D) features (RankMe, Garrido et al. 2023)."""
    return rank_of(torch.linalg.svdvals((features - features.mean(0)).double()))


def rankme(features: Tensor) -> float:
    """RankMe of (N, D) features: exp of the entropy of the singular values' shares (Garrido et al. 2023, equation 1).

    `effective_rank` takes the mean out first; the paper does not.
    """
    return smooth_rank(torch.linalg.svdvals(features.double()))


def smooth_rank(values: Tensor) -> float:
    """exp of the entropy of the shares of their sum that values (D,) have."""
    share = values / values.sum().clamp(min=1e-300) + RANKME_EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def lidar(features: Tensor) -> float:
    """LiDAR of (N, V, D), V views of N images: the rank of what tells images apart (Thilak et al. 2023, section 4).

    Eigenvalues of Sw^-1/2 Sb Sw^-1/2, with Sb the covariance of the images' means and Sw that of views around them,
    which gets LIDAR_DELTA on its diagonal; then exp of the entropy of their shares, as in RankMe.
    """
    x = features.double()
    centres = x.mean(1)
    apart, around = centres - centres.mean(0), (x - centres[:, None]).flatten(0, 1)
    between = apart.T @ apart / (len(x) - 1)
    within = around.T @ around / (len(x) * (x.shape[1] - 1))
    within += LIDAR_DELTA * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(within)
    whitener = vectors * values.rsqrt()
    return smooth_rank(torch.linalg.eigvalsh(whitener.T @ between @ whitener).clamp(min=0))


def dimension_std(features: Tensor) -> float:
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
        rows = torch.arange(len(block), device=block.device)
        similarity[rows, start * QUERY_BLOCK + rows] = -2
        found.append(similarity.topk(min(k, len(unit) - 1), dim=1).indices)
    return torch.cat(found)


def knn_logits(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Votes of the k nearest by cosine, weighted exp(cos / T) (Wu et al. 2018): (Q, D) -> (Q, classes)."""
    return votes_and_classes(bank, labels, queries, k, temperature, classes)[0]


def votes_and_classes(
    bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int
) -> tuple[Tensor, Tensor]:
    """The votes of `knn_logits` (Q, classes), and the classes of the k nearest themselves, nearest first (Q, k).

    With several ranks each looks at its share of the queries, in blocks; all receive all results.
    """
    bank, k = F.normalize(bank, dim=1), min(k, len(bank))
    blocks = F.normalize(queries, dim=1).split(QUERY_BLOCK)
    rounds = -(-len(blocks) // ranks.world())
    own = [*blocks[ranks.rank() :: ranks.world()], queries[:0]][:rounds]
    votes, found = [], []
    for block in own:
        similarity, nearest = (block @ bank.T).topk(k, dim=1)
        weights = torch.softmax(similarity / temperature, dim=1)  # exp(cos / T) but for a factor a query, at any T
        own_votes = weights.new_zeros(len(block), classes).scatter_add_(1, labels[nearest], weights)
        votes += ranks.gather_rows(own_votes, QUERY_BLOCK)
        found += ranks.gather_rows(labels[nearest], QUERY_BLOCK)
    return torch.cat(votes), torch.cat(found)


def retrieval(found: Tensor, truth: Tensor, total: Tensor) -> dict[str, float]:
    """How well the k nearest (Q, k), given by their classes, are those of the query's own class (Q,).

    map@k: mean over queries of the average precision, the sum of the precisions at each right place over the least of
    k and `total` (Q,), the images of that class in the bank. recall@r: share of queries with a right one among the
    first r (Jegou et al. 2011).
    """
    right = (found == truth[:, None]).double()
    precision = right.cumsum(1) / torch.arange(1, found.shape[1] + 1)
    average = (precision * right).sum(1) / total.clamp(min=1, max=found.shape[1])
    places = [r for r in RECALLS if r <= found.shape[1]]
    recalls = {f"recall@{r}": float(right[:, :r].any(1).double().mean()) for r in places}
    return {f"map@{found.shape[1]}": float(average.mean()), **recalls}


def knn_top1(bank: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, k: int, temperature: float) -> float:
    """Share of queries whose weighted vote is right."""
    votes = knn_logits(bank, labels, queries, k, temperature, int(labels.max()) + 1)
    return float((votes.argmax(1) == truth).float().mean())
