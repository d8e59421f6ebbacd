"""Train a run and record it: the training loop, the recorder and its write queue.

Imports from ``capture`` everything up to ``capture.engine``; ``capture.replay``,
``capture.custom_loop`` and ``capture.estimates`` build on it. Exports nothing.
"""
