"""The pages of the report, each a function from ``ReportData`` to a ``ReportPage``.

May import ``analysis.report.drawing``, ``analysis.run`` and ``analysis.jobs``, and those parts of
``capture`` that describe settings in words.
"""
