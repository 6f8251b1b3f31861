"""Running a plan: the run folder, the executors that start stage processes, and the runner that drives them."""
