"""How good pictures are, in numbers whose network, count and settings stand beside them."""
