"""Numbers with intervals: metrics, folds, attacks, timing, and scores of files as a table."""
