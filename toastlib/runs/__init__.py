"""Running notebooks: their parameters, one run or a grid of them, on a machine or a cluster, and what came of it."""
