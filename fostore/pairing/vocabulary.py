"""Whether a student's tokens are those that a teacher's rows are of."""

from __future__ import annotations

from typing import Any

from fostore.errors import ArgumentError
from fostore.generate.tokenizers import describe_tokenizer
from fostore.pairing.content import refuse
from fostore.pairing.distributions import Distributions
from fostore.schema.row import TOKEN


def check_vocabulary(given: Distributions, tokenizer: Any) -> None:
    """Refuse a student whose tokens are other ones than the teacher's, where both say what theirs are.

    Raises:
        ArgumentError: rows are no tokens.
        IdentityError: the vocabularies differ, and no class_map leads from one to the other.
    """
    store = given.stored
    if store is None or store.schema.row_axis != TOKEN:
        raise ArgumentError(
            "tokenizer= is of rows of tokens, and these are of samples; leave it out"
        )
    own, teacher = describe_tokenizer(tokenizer), store.dataset_facts
    known = own["vocabulary"], teacher.get("vocabulary")
    if given.class_map is not None or None in known or known[0] == known[1]:
        return
    both = (own["tokenizer"], teacher.get("tokenizer", {}))
    mine, theirs = (one.get("name", "without a name") for one in both)
    raise refuse(
        f"the student's tokenizer ({mine}) has another vocabulary than the teacher's ({theirs}), which the rows are of",
        "class_map= says which token of the student each of the teacher's is",
    )
