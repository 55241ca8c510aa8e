"""`async with client.instance(...)`: start, watch, use, and release one instance."""
