"""The vocabulary of forward passes, one file for each kind of word; program/ops.py puts them together."""
