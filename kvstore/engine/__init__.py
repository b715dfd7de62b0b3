"""Contract to be written by this room."""
