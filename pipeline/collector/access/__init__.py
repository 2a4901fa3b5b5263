"""How the memory, types and symbols of a kernel are had."""
