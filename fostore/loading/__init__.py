"""Loading: in which order the samples of an epoch come, where a loader is in it, and what runs ahead."""
