"""WHAT WOULD BE? A model on a machine before it is loaded, what computes it, and what a host needs to run it well."""
