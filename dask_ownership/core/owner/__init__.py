"""What an owner decides."""
