"""The shape of one curve: change points, suddenness with its nulls, and the step of half change."""
