"""Models by name: the table of them, and how they come to this machine."""
