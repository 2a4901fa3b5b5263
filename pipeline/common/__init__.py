"""Helpers that most packages share: text, output files, temporary directories, data directories and errors."""
