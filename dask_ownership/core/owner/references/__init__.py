"""Objects that several processes know."""
