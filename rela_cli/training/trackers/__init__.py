"""Trackers besides metrics.jsonl: one class a service, and the thread that hands records on."""
