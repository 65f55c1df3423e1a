"""Measures this project against other ways to run the same tasks.

Run ``python -m dask_ownership.benchmarks --help``. Every engine runs in a process of its own, with
the same code for all engines that speak Dask's API; results are medians with their spread.
"""
