"""Batches: a file of requests, instances that answer them, and a file of answers."""
