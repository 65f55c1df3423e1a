"""Recovery: keeps values from being lost, and makes lost values again."""
