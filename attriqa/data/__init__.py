"""Rows and files become splits and batches: what recipes learn from and are tested on."""
