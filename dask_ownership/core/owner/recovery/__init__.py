"""What keeps values from being lost, or makes them again."""
