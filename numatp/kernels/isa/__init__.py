"""One file per instruction set: the dot product of bytes, the one primitive that LLVM does not find by itself."""
