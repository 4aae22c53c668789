"""IN WHAT ORDER? Ops, their barriers, and the Program that the C runtime executes."""
