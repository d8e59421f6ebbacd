"""Train a run again with other weights of its datums, in the same order and with the same seeds.

Imports from ``capture`` everything up to ``capture.replay``. Exports nothing.
"""
