"""Principal components of what a model gives out over training, and where their path turns."""
