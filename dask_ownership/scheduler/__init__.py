"""The scheduler plugin, detached objects and relays, which run in the scheduler process."""
