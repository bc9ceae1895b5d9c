"""Is a difference as good as none? Two one-sided t tests (Schuirmann 1987): it lies within a margin stated beforehand.

An interval that holds 0 does not say that two ways are equal: with few seeds it may hold everything. Equivalence is a
claim of its own: that the mean difference is above -margin and below +margin, each by a one-sided paired t test. At 5 %
this is the same as saying that the 90 % interval of the mean lies within the margin.
"""

from __future__ import annotations

LEVEL = 0.05  # of each of the two tests


def larger_p(mean: float, half: float, n: int, margin: float) -> float:
    """The larger p of the two tests, from the mean of n paired differences and half of its 95 % t interval.

    mean, half and margin are in the same unit; n is at least 2.
    """
    from scipy.special import stdtr, stdtrit

    room = margin - abs(mean)  # to the border that is nearer
    if half == 0:
        return 0.0 if room > 0 else 1.0
    error = half / float(stdtrit(n - 1, 0.975))
    return float(stdtr(n - 1, -room / error))
