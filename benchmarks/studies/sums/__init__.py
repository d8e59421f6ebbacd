"""What the study of grokking measures beside metrics, and its page."""
