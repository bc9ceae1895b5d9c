"""Learners: the networks being trained. Each backbone says its `feature_dim`."""
