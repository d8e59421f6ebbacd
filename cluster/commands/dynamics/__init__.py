"""Commands on training itself: spectrum, trajectory, transitions. Imports as ``commands``."""
