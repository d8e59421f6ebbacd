"""Judge scores of training datums by retraining: does the model change as the scores predict?

``correlations`` and ``designs`` are pure. ``retrainings`` trains the run again with other weights
of its datums and keeps the results in the run; ``judge`` compares them with the scores.
"""
