"""The page of a neuron, one module for each group of its sections.

May import what ``analysis.report.pages`` may, and the other modules of that package.
"""
