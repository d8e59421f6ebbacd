"""What is changed on purpose while a model trains: parts that are suppressed, datums left out.

Imports from ``capture`` models and parts. Exports nothing.
"""
