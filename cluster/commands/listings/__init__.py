"""Commands that list settings and runs, and compute nothing. Same imports as ``commands``."""
