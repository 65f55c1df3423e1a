"""The decisions of ownership, without any input or output.

Nothing in this package imports asyncio, distributed, threading, time or random.
Each class is told what happened and leaves the work to do in plain lists, so
the same code runs on a real cluster (`dask_ownership.runtime`) and in the
virtual one (`dask_ownership.testing`).
"""
