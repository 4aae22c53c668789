"""WHEN is what computed? Ranks, Steps, caches, generation; knows token ids, never text."""
