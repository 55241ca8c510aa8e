"""`AsyncCortecs`, and how it is wired."""
