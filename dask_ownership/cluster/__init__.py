"""What is installed into a Dask cluster: a scheduler plugin and a worker plugin."""
