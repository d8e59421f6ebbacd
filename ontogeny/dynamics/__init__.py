"""Public functions about how training goes on: transitions, seeds and the comparison of runs."""
