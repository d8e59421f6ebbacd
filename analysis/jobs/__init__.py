"""Map, merge and finish over the shards of a run, and the tables that analyses write.

A job is three pure functions; a runner carries them out in a loop (``cluster.local``) or on Ray
(``cluster.on_ray``). May import ``analysis.run`` and ``capture``.
"""
