"""How the weights of others name what ours name otherwise; nothing here reads files."""
