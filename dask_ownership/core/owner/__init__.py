"""The core of an owner: decisions about rows, workers and borrowers, without input or output."""
