"""Measurements with several workers, many steps and many shards; predictions for more machines.

``python -m benchmarks.scale`` measures, and with ``--predict`` updates docs/scale.md from the
results. May import all of ``benchmarks``, ``capture``, ``analysis`` and ``cluster``.
"""
