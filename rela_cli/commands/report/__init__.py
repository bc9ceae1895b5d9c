"""`rela report`: one HTML page about some runs."""
