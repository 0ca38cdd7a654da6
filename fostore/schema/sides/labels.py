"""Which label each sample had: a 64-bit hash of it, kept as a column."""

from fostore.schema.sides.fingerprints import HashSide

SIDE = HashSide("label", "labels", "label_hash")
