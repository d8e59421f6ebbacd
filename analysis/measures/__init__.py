"""Statistics on plain arrays: token selection, multiple testing, bootstrap, association.

Imports NumPy, SciPy, pandas and ``capture.errors`` only; knows nothing about runs.
"""
