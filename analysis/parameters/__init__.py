"""Answer for a single parameter: the tokens of the datums that have it among their outliers.

The entry point is ``analysis.parameters.tokens.parameter_tokens``. May import ``analysis.run``,
``analysis.jobs``, ``analysis.measures`` and ``analysis.attribution``.
"""
