"""KADID-10k's 25 distortions at five levels, one module for each family."""
