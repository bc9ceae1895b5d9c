"""`rela data check`, `pack` and `holdout`: what is done with a dataset before any run."""
