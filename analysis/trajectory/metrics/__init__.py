"""Metrics: functions from a model at a checkpoint, and a text, to rows of the trajectory."""
