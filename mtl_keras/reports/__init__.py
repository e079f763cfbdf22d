"""HTML reports of studies and comparisons: one template engine, one set of figures.

A report is one file that loads nothing: no script, font, picture or style sheet from
elsewhere. Jinja2 escapes whatever a user named; figures are inline SVG by Matplotlib.
"""
