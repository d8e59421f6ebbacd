"""The data that neurons and heads depend on, by retraining (``python -m benchmarks.effects``)."""
