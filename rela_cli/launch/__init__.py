"""Starting processes: the ranks of one run, the cells of a sweep."""
