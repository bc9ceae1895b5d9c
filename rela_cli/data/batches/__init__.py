"""Images on their way into a network: the cache of pixels, loading, the dynamic subset, views on the device."""
