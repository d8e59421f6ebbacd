"""Methods to compare, checks of their results, interleaved timing and reports of results.

May import ``capture``. The benchmarks and ``benchmarks.scale`` import from it.
"""
