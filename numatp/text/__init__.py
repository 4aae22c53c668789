"""Text to token ids and back; the rest of numatp knows ids only."""
