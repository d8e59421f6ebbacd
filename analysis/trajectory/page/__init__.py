"""What a trajectory says: a short text, and a page with its plots."""
