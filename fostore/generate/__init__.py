"""Generation: streaming the distributions of a model over a dataset; one loop for all frameworks.

Empty, so that the command line reads `fostore.generate.options` without loading NumPy.
"""
