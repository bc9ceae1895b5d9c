"""Transports: fitted maps from features to targets."""
