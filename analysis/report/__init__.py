"""Write a run and its analyses as HTML pages that can be read from disk.

``build`` writes the report, ``pages`` holds one module per page, ``drawing`` plots and markup.
May import all of ``capture`` but the training engine, and all of ``analysis`` but faithfulness.
"""
