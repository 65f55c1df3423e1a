"""What travels between processes, and how it is named."""
