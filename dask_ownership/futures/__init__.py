"""Futures, and the operations on them, in any process that has an owner."""
