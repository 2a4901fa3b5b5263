"""Screens for the terminal: one kernel, the cost model as a calculator, the runs of a warehouse."""
