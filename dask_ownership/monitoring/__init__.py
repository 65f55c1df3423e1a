"""What is told to those who look."""
