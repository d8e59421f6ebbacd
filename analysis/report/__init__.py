"""Write a run and its analyses as HTML pages that can be read from disk.

``build`` writes the report, ``pages`` has one module per page, ``drawing`` has plots and markup.
May import ``capture`` except the training engine, and the packages of ``analysis`` whose tables it
shows. Tables are read from the run; only the timeline of outliers and histograms are computed.
"""
