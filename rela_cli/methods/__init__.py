"""Self-supervised methods: one page each, after the contract in base.py."""
