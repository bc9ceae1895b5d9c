"""The machine under a run: devices, threads, memory, signals, progress, the network."""
