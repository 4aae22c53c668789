"""WHICH bytes are mine? Splits, rules, and the threads that load."""
