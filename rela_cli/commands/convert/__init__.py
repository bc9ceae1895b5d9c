"""`rela convert`: a dataset and the targets that a prior gives it, in a folder of its own."""
