"""Find the largest shifts of bigram logits, and the contribution of each datum to them.

May import ``analysis.run``, ``analysis.jobs`` and ``capture``. ``capture.replay``, which loads the
training engine, is imported only by functions that replay steps.
"""
