"""Compare curves: which change first, which change together, and which states they pass."""
