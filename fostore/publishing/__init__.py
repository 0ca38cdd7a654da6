"""A store becomes a dataset that others find, cite and check: a bundle of files around it, and where it goes."""

from fostore.publishing.publication import Publication, check, cite, publish

__all__ = ["Publication", "check", "cite", "publish"]
