"""The variant of the study of mazes."""
