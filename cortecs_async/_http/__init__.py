"""Sending a request: its access token, its slot, its attempts, and the typed error if it fails."""
