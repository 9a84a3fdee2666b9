"""What the papers published, and runs that stand beside it."""
