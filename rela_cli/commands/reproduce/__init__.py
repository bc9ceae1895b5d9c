"""`rela reproduce`. tables: the columns of each table; runs: what they need; execute, finish: make and show it."""
