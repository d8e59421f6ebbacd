"""One module for each command: ``add`` defines its options, ``run`` carries it out.

May import ``options``, and within functions all other packages: module tops stay light, so that
help and tab completion answer at once.
"""
