"""Columns beside the distributions: what each row says of its sample."""
