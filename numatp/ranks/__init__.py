"""WHO else is there? Alone, local worker processes, or MPI."""
