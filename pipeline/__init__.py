"""list-lru-audit: find the memory that eager list_lru allocation wastes across a fleet."""

__version__ = "0.1.0"
