"""How keys and values of one KV head lie in a block of the cache: one file per cache type, by llama.cpp's names (-ctk, -ctv).

Each holds device functions, with `size` values per head and CACHE_BLOCK tokens per block; the bytes of a block are
layout.cache_bytes. Pitches are those of kernels/layout.py.

    store_key(keys, token, size, x), store_value(values, token, size, x)   float32 x (size,) to its place
    prepare(state, size, room)                      the state's `room` queries, float32, as `score` wants them
    score(zero, scratch, state, keys, size, next_keys)
                                                    scores (rows of `zero`, CACHE_BLOCK) = queries . keys
    add_values(zero, scratch, state, values, size, count, tokens, next_values)
                                                    sums (rows of `zero`, size) = sums * corrections + the softmax's weights at
                                                    scores . values, for `count` queries and the first `tokens` tokens; later places
                                                    may hold anything
    expand_keys(keys, size, panels, apart), expand_values(values, size, tokens, panels, apart)
                                                    a block's as panels of BF16 (kernels/tiled_attention.py)
    unpack_keys(keys, size, out)                    a block's as float32 (size, CACHE_BLOCK)

scratch and state are those of kernels/scratch.py. score and add_values ask for what is wanted next from memory, next_keys and
next_values, a few lines at a time: a core can wait for some 20 only.
"""
