/* The lanes: lane i joins thread i of every rank. A sync publishes this rank's lane and waits for that of each other rank. */
#include "internal.h"

/* The flags of a rank start on a page of their own, so that they can lie on its node. */
static int64_t flag_block(int lanes)
{
    return numatp_round_up((int64_t)lanes * NUMATP_LINE, numatp_page_bytes());
}

int64_t numatp_flag_bytes(int size, int lanes)
{
    return size * flag_block(lanes);
}

static inline _Atomic int64_t *lane_flag(const struct numatp_ranks *ranks, int rank, int64_t lane)
{
    return (_Atomic int64_t *)(ranks->flags + rank * ranks->flag_block + lane * NUMATP_LINE);
}

void numatp_ranks_lanes(struct numatp_ranks *ranks, void *flags, int lanes)
{
    ranks->flags = flags;
    ranks->lanes = lanes;
    ranks->flag_block = flag_block(lanes);
    for (int lane = 0; lane < lanes; lane++) /* first touch, by the owner */
        atomic_store_explicit(lane_flag(ranks, ranks->rank, lane), ranks->base, memory_order_relaxed);
}

void numatp_sync_lane(struct numatp_ranks *ranks, int64_t ordinal, int64_t lane)
{
    if (lane >= ranks->lanes)
        return;
    int64_t number = ranks->base + ordinal;
    atomic_store_explicit(lane_flag(ranks, ranks->rank, lane), number, memory_order_release);
    for (int r = 0; r < ranks->size; r++)
        if (r != ranks->rank && !numatp_wait(ranks, lane_flag(ranks, r, lane), number, NUMATP_WATCH_PEERS))
            return; /* the executor looks at the abort word before the next op */
}
