"""The benchmarks: each module has a function `rows` that runs one and returns its results."""
