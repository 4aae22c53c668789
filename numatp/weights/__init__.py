"""WHICH bytes are mine? Splits, and the loader."""
