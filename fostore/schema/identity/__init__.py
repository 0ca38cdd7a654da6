"""What a store was made from: hashes of models, datasets and functions, and what differs between two.

Pure functions on values that are at hand; nothing here imports a framework. Versions, hosts,
devices and times are no part of an identity, so that an upgrade never blocks a resume.
"""

from fostore.schema.identity.code import filled_cells, is_of_library
from fostore.schema.identity.details import (
    Details,
    See,
    attributes_of,
    describe_callable,
    describe_function,
)
from fostore.schema.identity.differences import (
    ANEW,
    JOINED,
    differences,
    doubts,
    is_opaque,
    refuse,
    settled,
)
from fostore.schema.identity.hashing import (
    UNSEEN,
    array_entry,
    hash_bytes,
    hash_leaves,
    hash_values,
    row_hashes,
)

__all__ = [
    "ANEW",
    "JOINED",
    "UNSEEN",
    "Details",
    "See",
    "array_entry",
    "attributes_of",
    "describe_callable",
    "describe_function",
    "differences",
    "doubts",
    "filled_cells",
    "hash_bytes",
    "hash_leaves",
    "hash_values",
    "is_of_library",
    "is_opaque",
    "refuse",
    "row_hashes",
    "settled",
]
