"""`rela reproduce`: the paper's tables . tables: their columns; runs: which runs they need; execute and finish: make and show them."""
