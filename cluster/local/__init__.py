"""Run work on this machine: threads, processes, a launcher's processes, and signals.

May import ``analysis`` and ``capture``, but no other package of ``cluster``.
"""
