"""`rela data check` and `rela data pack`: what is done with a dataset before any run."""
