"""Read runs and answer: which data moved which parameters, when, and what depends on them.

May import ``capture``, but loads neither the training loop nor Ray or DeepSpeed. Packages in import
order: ``levels``, ``measures``, ``run``, ``report.drawing``; ``jobs``; ``attribution``,
``activations``, ``behaviour``, ``bigrams``, ``report.pages``; ``ablation``, ``neurons``,
``report``; ``faithfulness``. The public names are those of ``ontogeny``.
"""
