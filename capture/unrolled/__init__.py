"""Differentiate through training: the derivative of a query by the weight of each training datum.

Imports from ``capture`` everything up to ``capture.replay``. Exports nothing.
"""
