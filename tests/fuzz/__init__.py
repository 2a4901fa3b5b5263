"""Hostile bytes for parsers and cores: campaigns with a seed, which count their cases."""
