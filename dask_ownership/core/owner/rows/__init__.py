"""Rows, what counts them, and their life."""
