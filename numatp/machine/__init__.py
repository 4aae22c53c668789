"""Where am I? The machine, what of it this job was given, and binding to it; runs before numpy or numba load."""
