"""Which training datums are behind a behaviour, or do not fit the others: ranked suspects.

``detection`` compares a ranking with a truth that was planted (``corpus.plant``,
``corpus.scramble``, ``corpus.flip``).
"""
