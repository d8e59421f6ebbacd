"""Cheap scores of training datums for queries, to compare influence with.

Each is a function of a run and Q queries that returns float64 [Q, D], D the number of training
datums: the higher, the more the datum should raise the query. NaN where a score does not exist.
"""
