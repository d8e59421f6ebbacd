"""The spectrum of training: in how many directions do the updates of a run point, and when?

``spectrum`` has the whole analysis; ``gram`` and ``concentration`` its pure core.
"""
