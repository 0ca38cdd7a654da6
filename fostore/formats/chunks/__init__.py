"""Stores that other tools have compressed or rechunked: which chunk, its bytes, its rows; decoded within bounds."""
