"""How fast, and how the cost grows.

Paired, interleaved timings in one run, reported as ratios. `make benchmark` runs them and draws the
results.

Nothing here is a test: no check in this repository depends on how long something takes.
"""
