"""Messages between processes, and the names that processes use for tasks and objects."""
