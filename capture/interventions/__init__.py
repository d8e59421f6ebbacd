"""Interventions in training: parts that are suppressed, and datums that are left out.

Imports from ``capture`` models and parts. Exports nothing.
"""
