"""Where bytes lie, and who may touch them."""
