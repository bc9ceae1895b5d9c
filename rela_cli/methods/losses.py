"""Two losses of lightly's, the same numbers, without boolean masks: on a GPU those make the host wait in every step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rela_cli.distributed import collectives, ranks

EPSILON = 1e-4  # under the square root of VICReg's variance (the authors' code)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss (Chen et al. 2020, equation 1) of two views' projections (B, D), negatives from all ranks."""
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    every1, every2 = collectives.gathered(z1), collectives.gathered(z2)
    own = torch.arange(len(z1), device=z1.device) + ranks.rank() * len(z1)
    columns = torch.arange(len(every1) - 1, device=z1.device)
    others = columns + (columns >= own[:, None])  # (B, all - 1): every column but a row's own
    one_one, one_two = cosines(z1, every1, temperature), cosines(z1, every2, temperature)
    two_one, two_two = cosines(z2, every1, temperature), cosines(z2, every2, temperature)
    one_one, two_two = one_one.gather(1, others), two_two.gather(1, others)
    logits = torch.cat((torch.cat((one_two, one_one), dim=1), torch.cat((two_one, two_two), dim=1)))
    return F.cross_entropy(logits, own.repeat(2))


def cosines(z: Tensor, every: Tensor, temperature: float) -> Tensor:
    """(B, D) and (M, D) unit vectors -> (B, M) logits."""
    return torch.einsum("nc,mc->nm", z, every) / temperature


def vicreg(z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """VICReg's loss (Bardes et al. 2022, algorithm 1) of two views' projections (B, D), statistics of all ranks.

    As in lightly and in the authors' code, `variance` weighs the mean of the two views' terms, not their sum.
    """
    likeness = F.mse_loss(z1, z2)
    z1, z2 = collectives.gathered(torch.stack((z1, z2), dim=1)).unbind(1)
    spread = 0.5 * (narrowness(z1) + narrowness(z2))
    return invariance * likeness + variance * spread + covariance * (redundancy(z1) + redundancy(z2))


def narrowness(z: Tensor) -> Tensor:
    """How far deviations are below 1: (N, D) -> scalar."""
    return F.relu(1.0 - (z.var(dim=0) + EPSILON).sqrt()).mean()


def redundancy(z: Tensor) -> Tensor:
    """Squares of the covariances of different dimensions, their sum a dimension: (N, D) -> scalar."""
    z, dim = z - z.mean(dim=0), z.shape[1]
    matrix = torch.einsum("bc,bd->cd", z, z) / (len(z) - 1)
    apart = matrix.flatten()[1:].view(dim - 1, dim + 1)[:, :-1]  # (D - 1, D): all but the diagonal
    return apart.flatten().square().sum() / dim
