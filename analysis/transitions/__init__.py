"""Find when metrics of training change, whether suddenly, in which order, and what moved then.

``transitions`` reads the tables of one run or several and answers. ``curves`` and ``shape`` are
about one curve, ``timing`` compares curves, ``moved`` asks the record, and ``runs`` compares runs.
"""
