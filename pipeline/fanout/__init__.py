"""Collection of a run: the driver sends batches to Ray, and a worker runs one child process for each target."""
