"""The full-screen view of `cortecs-async top`."""
