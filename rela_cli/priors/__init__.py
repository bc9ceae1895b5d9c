"""Priors: frozen models (or none) whose features inform the targets. One file a family."""
