"""What an answer consists of: reasoning, the words for the reader, and calls of tools, each as its model's format writes it."""
