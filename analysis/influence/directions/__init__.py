"""Influence and drift along directions of a weight's inputs or outputs, not only along neurons.

``bases`` gives the directions, ``along`` the influence of each datum along each, and along random
directions as the null.
"""
