"""What commands print: tables, progress, error lines. Imports ``rich`` (``plain`` does not).

May import ``analysis`` and ``capture``, but no other package of ``cluster``.
"""
