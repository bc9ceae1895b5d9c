"""Arithmetic without knowledge of runs: randomness as a function, matrices, logistic regression."""
