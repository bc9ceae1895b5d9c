"""The tables of `rela table`: accuracies, costs, differences, and results on other data."""
