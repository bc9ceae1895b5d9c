"""Files that outlive a process: cache entries, run folders, locks, hashes. Nothing of the method."""
