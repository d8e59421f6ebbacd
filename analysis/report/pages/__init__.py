"""The pages of the report, each a function from ``ReportData`` to a ``ReportPage``.

May import ``analysis.report.drawing``, ``analysis.run`` and ``analysis.jobs``, and ``capture`` for the texts
that describe settings.
"""
