"""The benchmarks: each module has a function `row` that runs it and returns its results."""
