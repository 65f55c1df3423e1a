"""Links, requests and what they carry."""
