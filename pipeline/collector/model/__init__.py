"""The cost model and the estimates: arithmetic without drgn."""
