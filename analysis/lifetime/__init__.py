"""Lifetime shifts as a record: the largest of each datum in each step, and their norms by token.

``analysis.lifetime.run.lifetime_run`` is the entry point. It returns a run whose recorded shifts
are lifetime shifts, so analyses read them in the same way. May import ``analysis.run`` and
``analysis.jobs``.
"""
