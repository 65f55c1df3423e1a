"""The owner in a process: its core on an event loop."""
