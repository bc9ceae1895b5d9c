"""Files of a dataset: listed, unpacked, downloaded, read from a folder or from an address."""
