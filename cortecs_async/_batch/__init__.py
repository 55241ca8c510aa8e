"""Batches: a file of requests, instances that answer them, a file of answers. Loaded with the first one."""
