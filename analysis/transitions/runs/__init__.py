"""Compare runs: milestones, stability over seeds, two kinds of outcome, and where runs part."""
