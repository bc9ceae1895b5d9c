"""A table as a grid of cells, and its forms: terminal, Markdown, LaTeX, CSV, JSON."""
