"""Train and record: what each datum does to each parameter at each step, as a run on a store.

Imports neither ``analysis`` nor ``cluster``, and knows no Ray. Packages in import order:
``errors``, ``device``, ``process_group``; ``store``, ``gradients``, ``optim``, ``models``;
``shards``, ``shifts``, ``corpus``; ``config``; ``format``; ``engine``; ``training``; ``replay``,
``custom_loop``, ``estimates``, ``maintenance``. The public names are those of ``ontogeny``.
"""

__version__ = "0.2.0"
