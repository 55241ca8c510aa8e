"""One request: its token, its turn, its attempts, and the typed error that it ends in."""
