"""The embedded default weights and their model card."""
