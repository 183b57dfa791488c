"""`t2i eval`: numbers about models and pictures."""
