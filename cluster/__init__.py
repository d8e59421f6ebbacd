"""The command line ``ontogeny``, and where its work runs: on this machine or on a Ray cluster.

May import ``analysis``, ``capture`` and ``ontogeny``. Its packages in import order: ``local`` and
``terminal``, ``on_ray``, ``options``, ``commands``, then ``cli``. All names are private; the public
Python API is the package ``ontogeny``.
"""
