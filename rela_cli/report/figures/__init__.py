"""The plots of `rela plot` and `rela report`."""
