"""`rela reproduce`, the paper's tables. tables: their columns; runs: what they need; execute, finish: make and show it."""
