"""What users bring: anything that has rows, read a batch at a time."""
