"""How fast training is: paired, interleaved timings in one run, reported as ratios.

`make benchmark` runs them and draws the results. No test depends on how long something takes.
"""
