"""How keys and values of one KV head lie in a block of the cache: one file per cache type, by llama.cpp's names (-ctk, -ctv).

Each holds device functions, with `size` values per head and CACHE_BLOCK tokens per block; the bytes of a block are
layout.cache_bytes. Pitches are those of kernels/layout.py.

    store_key(keys, token, size, x), store_value(values, token, size, x)   float32 x (size,) to its place
    prepare(queries, prepared, size, room)          queries float32 (room, size), QUERY_PITCH apart, as `score` wants them
    score(queries, prepared, keys, size, scores, zero, next_keys), score_few(...)
                                                    scores (rows of `zero`, CACHE_BLOCK) = queries . keys; few: of at most FEW rows
    add_values(scores, factors, corrections, sums, values, size, count, tokens, zero, next_values), add_values_few(...)
                                                    sums (rows of `zero`, size) = sums * corrections + the softmax's weights at
                                                    scores . values, of the first `tokens` tokens; later places may hold anything.
                                                    factors: room for the weights of `count` rows in another form

Both ask for what is wanted next from memory, next_keys and next_values, a few lines at a time: a core can wait for some 20 only.
"""
