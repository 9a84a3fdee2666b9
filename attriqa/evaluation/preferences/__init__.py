"""Which of two images, or which generator, is better: pairs, votes, win rates and their reports."""
