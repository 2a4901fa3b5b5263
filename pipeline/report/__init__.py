"""One report model, its renderers, and the rendering of query results.

Imports nothing, so that a screen that needs no warehouse starts without DuckDB and pyarrow.
"""
