/* What the C files of the runtime share: the layout of the window's control section, waiting, and gates. */
#ifndef NUMATP_INTERNAL_H
#define NUMATP_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "numatp.h"

#define NUMATP_CONTROL_PAGE 4096

#ifndef NUMATP_AWAKE_NS
#define NUMATP_AWAKE_NS 10000000 /* how long to stay awake after the last work: a request in flight comes back sooner */
#endif
#ifndef NUMATP_LOOK_NS
#define NUMATP_LOOK_NS 200000000 /* how long a rank sleeps before it looks whether the others still live */
#endif

/* The stress test defines this as a random delay, to open the narrow windows between two steps of a protocol. */
#ifndef NUMATP_TEST_DELAY
#define NUMATP_TEST_DELAY() ((void)0)
#endif

/* A sequence that only one thread advances and others wait for, awake or asleep. The bell is what sleepers sleep on:
 * futex words have 32 bits, the sequence has 64. `asleep` says that somebody may have to be woken. */
struct numatp_gate {
    _Alignas(NUMATP_LINE) _Atomic int64_t sequence;
    int64_t program; /* what the sequence announces, on its line: one transfer brings both */
    int64_t num_syncs;
    _Alignas(NUMATP_LINE) _Atomic uint32_t bell;
    _Atomic uint32_t asleep;
};

/* What one rank tells the others. One page, so that it can lie on the rank's own node. */
struct numatp_rank_page {
    _Alignas(NUMATP_CONTROL_PAGE) _Atomic int64_t done;     /* Steps finished */
    _Alignas(NUMATP_LINE) _Atomic int64_t meetings; /* meetings this rank has come to */
    _Atomic int32_t pid;
    _Alignas(NUMATP_LINE) char abort_text[NUMATP_ABORT_BYTES]; /* read by others only if this rank's abort was the first */
    _Alignas(NUMATP_LINE) char note[NUMATP_NOTE_BYTES];
};

/* The control section of the window. Zero is its start state. */
struct numatp_control {
    struct numatp_gate steps;                         /* sequence: Steps published by rank 0; program < 0: stop */
    _Alignas(NUMATP_LINE) _Atomic int32_t aborted_by; /* 1 + the rank that ended the job, or 0 */
    _Alignas(NUMATP_CONTROL_PAGE) struct numatp_rank_page rank[];
};

struct numatp_peer {
    int32_t pid;  /* 0 while unknown */
    int pidfd;    /* -1 where the kernel does not give one */
    bool watched; /* false for ourselves, and for ranks that are threads of this process (tests) */
};

struct numatp_ranks {
    struct numatp_control *control;
    int rank, size;
    bool crowded;
    int32_t pid;             /* the process that opened this; a child made by fork must not touch the window */
    _Atomic bool abort_text; /* a thread of this rank has taken the right to write the text */
    _Atomic bool asked_why;  /* our caller knows that the job has ended */
    bool meeting;            /* we have come to the current meeting, and not all others have */
    int64_t step;            /* Steps published (rank 0) or begun (others) */
    int64_t base;            /* syncs executed by all earlier Steps: sync `ordinal` of this Step is number base + ordinal */
    char *flags;             /* [size] blocks of [lanes] lines, see numatp_flag_bytes */
    int64_t flag_block;      /* bytes of one rank's block */
    int lanes;
    struct numatp_hosts *hosts; /* NULL: all ranks are on this host */
    int job;                    /* of several hosts: 1, 2, ... for each job of this process */
    int first;                  /* of several hosts: number in the job of the rank at our seat 0 */
    struct numatp_peer peer[NUMATP_MAX_RANKS];
};

static inline int64_t numatp_round_up(int64_t bytes, int64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

static inline bool numatp_aborted(const struct numatp_ranks *ranks)
{
    return atomic_load_explicit(&ranks->control->aborted_by, memory_order_relaxed) != 0;
}

bool numatp_forked(const struct numatp_ranks *);

const char *numatp_abort_reason(struct numatp_ranks *); /* numatp_abort_text for us, not for our caller */

/* Looks whether the other ranks live: 1 + the rank of a dead one, or 0. */
int numatp_dead_peer(const struct numatp_ranks *);
/* Publishes lane `lane` of this rank and waits for that of the others; see numatp_sync. */
void numatp_sync_lane(struct numatp_ranks *, int64_t ordinal, int64_t lane);

/* Ends the job because rank `dead` - 1 no longer lives. */
void numatp_abort_dead(struct numatp_ranks *, int dead);

struct numatp_ranks *numatp_team_ranks(const struct numatp_team *);

/* ------------------------------------------------------------------ other hosts
 *
 * The rank at seat 0 of another host stands in for rank 0 there: it publishes in its own window what it is told. All of these give
 * up, with false, when the job has ended. */

struct numatp_step_header {
    int64_t program;   /* < 0: stop */
    int64_t crossings; /* of it, on rank 0 */
};

/* Rank 0: tells the others of a Step, and is ready for what they return; program NULL: nothing of it is waited for. */
bool numatp_hosts_announce(struct numatp_ranks *, int64_t index, const struct numatp_program *);
bool numatp_hosts_collect(struct numatp_ranks *); /* until all has come back */

/* The other leaders: wait for the next Step, take what it needs, answer that the host has finished it. */
bool numatp_hosts_next(struct numatp_ranks *, struct numatp_step_header *);
bool numatp_hosts_hear(struct numatp_ranks *, const struct numatp_program *);
bool numatp_hosts_answer(struct numatp_ranks *, const struct numatp_program *);

/* ------------------------------------------------------------------ waiting */

/* What can end a wait before its time: for the next program of the team nothing, for the threads of our own rank an
 * abort, for another rank also its death. */
enum numatp_watch { NUMATP_WATCH_NOTHING, NUMATP_WATCH_ABORT, NUMATP_WATCH_PEERS };

struct numatp_patience {
    uint32_t turns;
    int dead;        /* 1 + rank found dead: ends the wait unless what we wait for had come before the death */
    int64_t since;   /* ns, clock of the first slow turn, 0 before it */
    int64_t waited;  /* ns since then */
    int64_t looked;  /* ns, clock of the last look at the peers */
};

int64_t numatp_clock(void); /* ns, monotonic */
int64_t numatp_own_clock(void); /* ns that the calling thread has run */
void numatp_sleep(int64_t ns);

/* One turn of a wait. False: give up, the job has ended. */
bool numatp_wait_more(struct numatp_ranks *, struct numatp_patience *, enum numatp_watch);

/* Until *word >= value; what was written before *word was set can then be read. False: give up, the job has ended.
 * The word may already be larger: another rank can be one exchange ahead of us. */
static inline bool numatp_wait(struct numatp_ranks *ranks, const _Atomic int64_t *word, int64_t value, enum numatp_watch watch)
{
    struct numatp_patience patience = {0};
    while (atomic_load_explicit(word, memory_order_acquire) < value)
        if (!numatp_wait_more(ranks, &patience, watch))
            return false;
    return true;
}

/* `shared`: the gate lies in the window and other processes wait at it. */
void numatp_gate_open(struct numatp_gate *, int64_t sequence, bool shared);
void numatp_gate_ring(struct numatp_gate *, bool shared);
bool numatp_gate_wait(struct numatp_ranks *, struct numatp_gate *, int64_t sequence, bool shared);

#endif
