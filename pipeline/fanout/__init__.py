"""One run: the driver sends batches to Ray, a worker runs one child process for each target and returns its outcome."""
