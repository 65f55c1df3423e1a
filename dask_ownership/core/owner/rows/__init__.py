"""The rows of one owner: their states, their counts, and the features that listen to rows."""
