"""`AsyncCortecs` and its wiring."""
