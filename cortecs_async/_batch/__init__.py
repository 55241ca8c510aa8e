"""Batches: run a file of requests on instances and write the answers to a file."""
