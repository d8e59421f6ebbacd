"""Print the tables of the commands on training itself. Same imports as ``terminal``."""
