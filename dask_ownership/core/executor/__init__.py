"""The decisions of an executor, the part of a worker that runs tasks of all owners."""
