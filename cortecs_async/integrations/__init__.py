"""Optional companions of other packages; each module says what it needs."""
