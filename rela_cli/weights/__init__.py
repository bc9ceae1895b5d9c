"""Weights of priors: where they lie, what a file is, where one can be fetched. No torch."""
