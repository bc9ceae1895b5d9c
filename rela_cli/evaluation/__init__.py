"""What frozen features are worth: protocols with labels, measures without."""
