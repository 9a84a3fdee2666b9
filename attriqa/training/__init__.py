"""What two or more recipes share: the loop, its state, losses, schedules and teachers."""
