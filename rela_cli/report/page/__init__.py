"""The page of `rela report`: one HTML file."""
