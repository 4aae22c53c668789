"""What is in a file? Model files, read with every length checked, and where they are kept."""
