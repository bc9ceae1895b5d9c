"""`rela rank`: priors side by side on a sample of the data, before any training."""
