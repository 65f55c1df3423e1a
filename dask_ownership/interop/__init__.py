"""Between owned tasks and tasks of the central scheduler."""
