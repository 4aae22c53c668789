"""The sums of the all-reduce. Lane i of a row is one contiguous part of its columns, the same on every rank.

Every rank adds in rank order, so all ranks get the same bits.
"""

from numatp.kernels.bf16 import store_rounded
from numatp.kernels.compile import device, kernel, share
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
def sum_of_ranks(args, start, i):
    """16 columns of a row of the partials, which begins `start` bytes behind their beginning: the sum in rank order."""
    total = load_f32x16(offset(load_pointer(args.partials, 0), start), i)
    for rank in range(1, args.ranks):
        total = total + load_f32x16(offset(load_pointer(args.partials, rank), start), i)
    return total


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
                    total = load_f32x16(offset(load_pointer(args.partials, rank), start), i)
                    if args.add:
                        total = load_f32x16(offset(args.out, start), i) + total
                    store_f32x16(offset(args.out, start), i, total)


@kernel(partials="pointer", ranks="int", rows="pointer", width="int", wire="int", wires="int", half="int", out="pointer")
def sum_slice(args, thread, threads):
    """Of several hosts: out (rows, columns) = this host's sum, in rank order, of the wire-th slice of the columns of each row.

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
def load_sum(args, wire, host, line, i):
    """What sum_slice left of a host's sum in its wire-th slice, `line` numbers behind the first row's."""
    start = load_pointer(args.sums, wire * args.hosts + host)
    if args.half:
        return widen_upper_halves(load_i16x16(start, line + i))
    return load_f32x16(start, line + i)


@kernel(sums="pointer", hosts="int", wires="int", lanes="int", rows="pointer", width="int", half="int", out="pointer", add="int")
def sum_hosts(args, thread, threads):
    """out (rows, width) = [out +] the sum over hosts, in their order, of sums[wire][host] (rows, that slice of the columns).

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
                    at = (i - begin) * 16
                    total = load_sum(args, wire, 0, line, at)
                    for host in range(1, args.hosts):
                        total = total + load_sum(args, wire, host, line, at)
                    if args.add:
                        total = load_f32x16(offset(args.out, start), i * 16) + total
                    store_f32x16(offset(args.out, start), i * 16, total)
