"""Efficient datasets: a dataset with the targets that a prior gave it, in a folder of its own."""
