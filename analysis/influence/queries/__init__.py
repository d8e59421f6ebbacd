"""Queries: scalar functions of a model's weights, whose change training data are asked about.

``parsing.read_queries`` turns what a user writes into specifications (frozen dataclasses, plain
JSON); each builds a ``Query`` for a run, which is called with weights and can be differentiated.
"""
