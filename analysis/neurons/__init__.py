"""Cluster neurons by the datums that moved them, and find polysemantic neurons.

May import ``analysis.run``, ``analysis.jobs``, ``analysis.measures``, ``analysis.levels`` and
``analysis.attribution``. scikit-learn is imported in ``clustering`` only.
"""
