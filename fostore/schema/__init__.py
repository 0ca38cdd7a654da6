"""What a row is, what a store says of itself, and the numbers, hashes and texts that belong to both."""
