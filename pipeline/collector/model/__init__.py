"""The cost model: arithmetic that imports no drgn."""
