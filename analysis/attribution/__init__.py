"""Which tokens moved which neurons, rows, heads or parameters, when, and in which direction.

The entry point is ``analysis.attribution.attribute.attribute``. May import ``analysis.run``,
``analysis.jobs``, ``analysis.measures``, ``analysis.levels`` and ``capture``.
"""
