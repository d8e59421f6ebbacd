"""Options that several commands share, and how commands act on them.

May import ``local``, ``terminal`` and ``on_ray``. The modules ``arguments``, ``choices`` and
``analysis`` import no heavy library at their top.
"""
