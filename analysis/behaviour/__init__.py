"""Compare the datums that show a named behaviour with matched controls.

The result says which units, heads and neurons these datums moved more than others did. May import
``analysis.run``, ``analysis.jobs``, ``analysis.measures`` and ``analysis.levels``.
"""
