"""Send requests, with an access token, a concurrency slot, retries, and a typed error on failure."""
