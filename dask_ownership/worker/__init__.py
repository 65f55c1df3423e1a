"""The worker plugin, which runs in worker processes."""
