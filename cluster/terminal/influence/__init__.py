"""Print the tables of the influence commands. Same imports as ``terminal``."""
