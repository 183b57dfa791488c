"""Tokenisers and frozen text encoders."""
