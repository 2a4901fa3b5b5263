"""Single screens of a terminal: one kernel, the cost model as a calculator, the runs of a warehouse."""
