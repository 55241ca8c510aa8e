"""The service: its data, its endpoints, and waiting on the state of an instance."""
