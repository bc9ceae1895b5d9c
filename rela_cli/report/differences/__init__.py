"""One way minus another at the same seed: means, intervals, equivalence."""
