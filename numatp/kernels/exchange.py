"""The sums of the all-reduce. Lane i of a row is one contiguous part of its columns, the same on every rank.

Every rank adds in the same order, so all ranks get the same bits: of 2, 4 or 8 neighbours come first and then what came of them.
A rank adds up the segments that it has of a sum likewise: a sum of 8 segments has the same bits for 1, 2, 4 and 8 ranks
(a tree in the product and across ranks: https://arxiv.org/abs/2511.17826).
"""

from numatp.kernels.bf16 import store_rounded
from numatp.kernels.compile import device, kernel, share
from numatp.kernels.jit import int64
from numatp.kernels.simd import (
    load_f32x16,
    load_i16x16,
    load_i64,
    load_pointer,
    offset,
    store_f32x16,
    widen_upper_halves,
)


@device
def sum_of_two(load, first, *where):
    return load(first, *where) + load(first + 1, *where)


@device
def sum_of_four(load, first, *where):
    return sum_of_two(load, first, *where) + sum_of_two(load, first + 2, *where)


@device
def sum_in_order(count, load, *where):
    """Of load(i, *where), 16 columns of the i-th of so many, in the order of all sums over ranks and over hosts."""
    if count == 2:
        return sum_of_two(load, int64(0), *where)
    if count == 4:
        return sum_of_four(load, int64(0), *where)
    if count == 8:
        return sum_of_four(load, int64(0), *where) + sum_of_four(load, int64(4), *where)
    total = load(int64(0), *where)
    for i in range(1, count):
        total = total + load(i, *where)
    return total


@device
def load_partial(rank, args, start, i):
    """16 columns of what a rank has of a row, which begins `start` bytes behind the partials' beginning."""
    return load_f32x16(offset(load_pointer(args.partials, rank), start), i)


@device
def sum_of_ranks(args, start, i):
    return sum_in_order(args.ranks, load_partial, args, start, i)


@kernel(
    segments="int", s0="pointer", s1="pointer", s2="pointer", s3="pointer", s4="pointer", s5="pointer", s6="pointer", s7="pointer",
    rows="pointer", width="int", out="pointer",
)  # fmt: skip
def join_segments(args, thread, threads):
    """out (rows, width) = the sum of 2, 4 or 8 segments (rows, width), in the order that ranks of one segment each would add them.

    Threads share the columns as those of a product.
    """
    first, last = share(args.width // 16, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        start = row * args.width
        for i in range(start + first * 16, start + last * 16, 16):
            total = load_f32x16(args.s0, i) + load_f32x16(args.s1, i)
            if args.segments > 2:
                total = total + (load_f32x16(args.s2, i) + load_f32x16(args.s3, i))
            if args.segments > 4:
                fours = load_f32x16(args.s4, i) + load_f32x16(args.s5, i)
                total = total + (fours + (load_f32x16(args.s6, i) + load_f32x16(args.s7, i)))
            store_f32x16(args.out, i, total)


@kernel(partials="pointer", ranks="int", lanes="int", rows="pointer", width="int", out="pointer", add="int")
def sum_partials(args, thread, threads):
    """out (rows, width) = [out +] the sum over ranks of partials[rank] (rows, width); width a multiple of 16."""
    if thread < args.lanes:
        first, last = share(args.width // 16, thread, args.lanes)
        for row in range(load_i64(args.rows, 0)):
            start = row * args.width * 4
            for i in range(first * 16, last * 16, 16):
                total = sum_of_ranks(args, start, i)
                if args.add:
                    total = load_f32x16(offset(args.out, start), i) + total
                store_f32x16(offset(args.out, start), i, total)


@kernel(partials="pointer", rank="int", ranks="int", lanes="int", rows="pointer", width="int")
def reduce_scatter(args, thread, threads):
    """First half of the exchange for long messages: within each lane, rank r puts the sum of the r-th part in its own buffer."""
    if thread < args.lanes:
        lane, lane_end = share(args.width // 16, thread, args.lanes)
        first, last = share(lane_end - lane, args.rank, args.ranks)
        for row in range(load_i64(args.rows, 0)):
            start = row * args.width * 4
            for i in range((lane + first) * 16, (lane + last) * 16, 16):
                total = sum_of_ranks(args, start, i)
                store_f32x16(offset(load_pointer(args.partials, args.rank), start), i, total)


@kernel(partials="pointer", ranks="int", lanes="int", rows="pointer", width="int", out="pointer", add="int")
def gather(args, thread, threads):
    """Second half: out (rows, width) = [out +] the sums, each read from the rank that made it."""
    if thread < args.lanes:
        lane, lane_end = share(args.width // 16, thread, args.lanes)
        for row in range(load_i64(args.rows, 0)):
            start = row * args.width * 4
            for rank in range(args.ranks):
                first, last = share(lane_end - lane, rank, args.ranks)
                for i in range((lane + first) * 16, (lane + last) * 16, 16):
                    total = load_partial(rank, args, start, i)
                    if args.add:
                        total = load_f32x16(offset(args.out, start), i) + total
                    store_f32x16(offset(args.out, start), i, total)


@kernel(partials="pointer", ranks="int", rows="pointer", width="int", wire="int", wires="int", half="int", out="pointer")
def sum_slice(args, thread, threads):
    """Of several hosts: out (rows, columns) = this host's sum of the wire-th slice of the columns of each row.

    half: as BF16 instead of float32.
    """
    begin, end = share(args.width // 16, args.wire, args.wires)
    first, last = share(end - begin, thread, threads)
    for row in range(load_i64(args.rows, 0)):
        start = (row * args.width + begin * 16) * 4
        line = offset(args.out, row * (end - begin) * (32 if args.half else 64))
        for i in range(first * 16, last * 16, 16):
            total = sum_of_ranks(args, start, i)
            if args.half:
                store_rounded(line, i, total)
            else:
                store_f32x16(line, i, total)


@device
def load_sum(host, args, wire, line, i):
    """What sum_slice left of a host's sum in its wire-th slice, `line` numbers behind the first row's."""
    start = load_pointer(args.sums, wire * args.hosts + host)
    if args.half:
        return widen_upper_halves(load_i16x16(start, line + i))
    return load_f32x16(start, line + i)


@kernel(sums="pointer", hosts="int", wires="int", lanes="int", rows="pointer", width="int", half="int", out="pointer", add="int")
def sum_hosts(args, thread, threads):
    """out (rows, width) = [out +] the sum over hosts of sums[wire][host] (rows, that slice of the columns).

    half: these are BF16.
    """
    if thread < args.lanes:
        first, last = share(args.width // 16, thread, args.lanes)
        for row in range(load_i64(args.rows, 0)):
            start = row * args.width * 4
            for wire in range(args.wires):
                begin, end = share(args.width // 16, wire, args.wires)
                line = row * (end - begin) * 16
                for i in range(max(first, begin), min(last, end)):
                    total = sum_in_order(args.hosts, load_sum, args, wire, line, (i - begin) * 16)
                    if args.add:
                        total = load_f32x16(offset(args.out, start), i * 16) + total
                    store_f32x16(offset(args.out, start), i * 16, total)
