"""Trajectories: metrics of a model at the checkpoints of its training.

May import ``capture`` and the packages of ``analysis`` above it in the diagram.
"""
