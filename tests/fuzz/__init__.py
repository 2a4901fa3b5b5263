"""Campaigns with a seed: damaged cores, and hostile bytes for every parser."""
