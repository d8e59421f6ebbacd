"""Run capture, jobs and sweeps on a Ray cluster. Only this package imports ``ray``.

May import ``analysis``, ``capture``, ``cluster.local`` and ``cluster.terminal``. The modules
``job``, ``policy`` and ``session`` can be imported where Ray is not installed.
"""
