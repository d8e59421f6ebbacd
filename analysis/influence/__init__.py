"""Estimate which training data made the model do something, and judge the estimate by retraining.

May import the other packages of ``analysis`` and ``capture``. ``capture.unrolled`` and
``capture.retraining``, which load the training engine, are imported inside functions. Exports nothing.
"""
