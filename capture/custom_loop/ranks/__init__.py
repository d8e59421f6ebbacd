"""A loop that several processes train together: one rank each, and one record of all.

``wrappers`` finds out whether a model is trained so, ``agreement`` keeps the ranks in step, and
``joint_step`` makes one step of what the ranks saw. Exports nothing.
"""
