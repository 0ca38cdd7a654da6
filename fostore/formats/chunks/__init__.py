"""Arrays that other tools laid out: which chunk, its bytes, its rows (array.py); decoded within bounds.

Another layout is one file here: a `Container`, and what reads its metadata.
"""
