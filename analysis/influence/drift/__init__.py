"""Do the shifts of a weight, a neuron or a direction agree more than those of a random walk?

``moments`` adds up the shifts of all datums; ``along`` evaluates any directions afterwards.
"""
