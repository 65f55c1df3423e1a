"""The owner in a process: the core of an owner on an event loop."""
