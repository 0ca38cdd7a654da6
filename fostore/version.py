"""The release of this library; the version of the format is another (header.py)."""

__version__ = "0.1.0"
