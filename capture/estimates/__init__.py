"""Estimates for ``ontogeny plan``: bytes, objects, requests, time and memory of a run.

Imports from ``capture`` everything up to ``capture.training``. Exports nothing.
"""
