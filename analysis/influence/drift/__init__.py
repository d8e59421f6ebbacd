"""Did learning move a weight, a neuron or a direction, or did noise? Drift against a random walk.

``moments`` adds up the shifts of all datums; ``along`` evaluates any directions afterwards.
"""
