"""The executor of a worker: its core on threads and an event loop."""
