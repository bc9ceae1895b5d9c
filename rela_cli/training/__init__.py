"""The training loop and what it needs: networks, checkpoints, watching, logs."""
