"""All private parts of dask and distributed that this project touches.

Each module is about one kind of object of distributed. All other modules of the package import
private names from here: so a new release of distributed is checked against one folder.
"""
