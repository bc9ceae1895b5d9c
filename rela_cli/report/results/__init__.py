"""What runs have left: their results and settings, what they cost, and which of them can be compared."""
