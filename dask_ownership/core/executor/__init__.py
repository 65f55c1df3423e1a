"""What an executor decides."""
