"""Activations of neurons by token: the baseline that needs no record of training.

The entry point is ``analysis.activations.tables.activations``. May import ``analysis.run``,
``analysis.jobs``, ``capture.models`` and ``capture.corpus``.
"""
