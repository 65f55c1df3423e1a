"""Instruments for tests: a virtual cluster around the real core."""
