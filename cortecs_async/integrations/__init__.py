"""Optional integrations with other packages. Each module states what to install."""
