"""What the report measures itself on the run's own text and checkpoints, for pages of neurons.

``passages``: where neurons are most active. ``update_norms``: in which datums the update norm of
named tokens arises. ``direct_logits``: which tokens a neuron writes towards and away from.
"""
