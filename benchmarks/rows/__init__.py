"""The rows: a module each, with a function that measures it."""
