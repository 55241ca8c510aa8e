"""Read a JSON schema and write a value that is valid under it."""
