"""What a NumPyro program is of one of its sites, read from its structure."""
