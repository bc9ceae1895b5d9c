"""`rela reproduce`: the paper's tables as sweeps. tables: what is in them; cells: what is there; execute: the rest."""
