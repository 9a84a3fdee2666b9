"""What tunes: policies, their training and checkpoints, and searches without one."""
