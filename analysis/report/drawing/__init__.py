"""Draw plots as SVG and write HTML elements, tables and numbers.

Pure functions from values to ``markupsafe.Markup``. Imports no other package of the project.
"""
