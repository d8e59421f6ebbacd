"""Replay: compute steps and segments of a run again from its checkpoints.

Imports from ``capture`` everything up to ``capture.training``. Exports nothing.
"""
