"""Access to a kernel: its memory, types and symbols."""
