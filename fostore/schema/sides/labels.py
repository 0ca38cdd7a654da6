"""Which label each sample had: a 64-bit hash of it, kept as a column."""

from fostore.schema.sides.fingerprints import hashes

SIDE = hashes("label", "labels", "label_hash")
