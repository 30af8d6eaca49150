"""Training: a plain loop, and what it needs to continue exactly."""
