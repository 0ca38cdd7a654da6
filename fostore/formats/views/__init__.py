"""How the rows of a column are looked at: mapped, or decoded piece by piece; gathered, announced, checked."""
