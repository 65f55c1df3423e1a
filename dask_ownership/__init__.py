"""A Dask client whose tasks are owned by the process that calls them."""
