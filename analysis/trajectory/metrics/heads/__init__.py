"""Metrics of attention heads and neurons: where heads look, how they compose, what they matter."""
