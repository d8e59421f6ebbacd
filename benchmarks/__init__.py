"""Benchmarks of capture, attribution, ablation and scale; each module runs by ``python -m``.

May import ``capture``, ``analysis`` and ``cluster``. Nothing but ``tests`` imports it.
"""
