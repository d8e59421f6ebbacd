"""Estimate which training data made the model do something, and judge the estimate by retraining.

May import the other packages of ``analysis`` and ``capture``. ``capture.unrolled`` and
``capture.retraining`` load the training engine; only functions import them. Exports nothing.
"""
