"""One file per instruction set: the dot product of bytes, which LLVM does not find by itself, and how many rows fit the registers.

Each is called as a level of machine/isa.py. It holds GROUP, the activation rows that a matrix tile is multiplied with at once,
MANY, the tokens from which on a prompt goes through tile registers (kernels/panels.py), 0 where there are none,
DOT, the instructions of a dot product (a test looks for them), and functions that emit LLVM IR; the dot products are exact in int32
(i: 16 lanes, j: 4 bytes of a lane):

    dot(builder, total, weights, x)          total[i] + sum of weights[i, j] * x[i, j]; weights in 0..128, x in -127..127
    dot_biased(builder, total, weights, x)   the same for weights + 128 in 0..255, counted from start(builder, -128 * sum of x)
    times_power(builder, y, n)               y * 2**n of float32, n whole in [-126, 127]
    gather(builder, table, indices, width)   for each of 16 indices `width` (4 or 8) bytes of the table at that address: one or two
                                             vectors of 16 words
    lookup(builder, table, indices)          table[index] for each of 64 bytes in 0..15; table: 16 Python ints in -128..255
"""
