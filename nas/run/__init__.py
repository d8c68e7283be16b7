"""A run: its folder, its records, its candidates and its front."""
