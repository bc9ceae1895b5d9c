"""Is the training healthy? Losses that are no numbers, and representations that collapse."""

from __future__ import annotations

COLLAPSED_RANK, COLLAPSED_DEVIATION = 2.0, 0.05  # measured in docs/reliability.md: healthy runs stay above 7 and 0.14

WATCHED = 2000  # train images that kNN and effective rank look at while it runs

WATCHED_K = 20  # neighbours for that; a glance, not the knn protocol

SETTLED = 50  # steps before which running statistics say too little to judge collapse by
