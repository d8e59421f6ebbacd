"""Ablation of neurons, rows and heads: flipped predictions and changed log-probabilities.

The entry point is ``analysis.ablation.ablate.ablate``. Forward passes that resume from an edited
state give the numbers of a naive ablation at a fraction of its cost. May import ``analysis.run``,
``analysis.jobs``, ``analysis.measures``, ``analysis.attribution`` and ``capture.models``.
"""
