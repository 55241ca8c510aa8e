"""Optional integrations with other packages; each module says what to install."""
