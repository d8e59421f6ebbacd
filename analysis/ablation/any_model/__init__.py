"""Subjects and forward passes of any model with known parts (``capture.parts``)."""
