"""Commands on influence and counterfactuals. Same imports as ``commands``."""
