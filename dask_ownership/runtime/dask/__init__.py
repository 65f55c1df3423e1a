"""Everything of dask and distributed that is private and that this project touches.

There is one module for each thing that is touched. All others import these names from here, so
that a new release of distributed is looked at in one place.
"""
