"""Datasets, decoding, views on the device, and the dynamic subset."""
