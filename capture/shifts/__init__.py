"""Summaries of per-datum shifts, made while training runs: the k largest (outliers) and tallies.

Works on the factors of one batch and returns tensors; ``capture.format`` writes them. May import
``capture.gradients``, ``capture.process_group`` and ``capture.errors``.
"""
