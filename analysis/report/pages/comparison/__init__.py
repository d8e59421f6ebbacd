"""The page that compares two runs, and what it shows."""
