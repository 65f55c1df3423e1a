"""References: objects whose futures are in several processes."""
