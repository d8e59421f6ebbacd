"""Maintenance of a run: ``verify`` its files, remove garbage, and check what capture records.

Imports from ``capture`` everything up to ``capture.training``. Exports nothing.
"""
