/* Waiting: awake by spinning, politely by yielding, or asleep in the kernel. */
#include "internal.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TURNS_SPINNING 256    /* turns between two looks at the clock and the abort word: a few microseconds */
#define TURNS_YIELDING 16
#define PEERS_NS 1500000      /* between two looks at the other ranks' processes */
#define YIELD_NS 1000000      /* a spin as long as this yields now and then: the core may not be ours alone after all */
#define CROWDED_AWAKE_NS 500000
#define CROWDED_NAP_NS 50000

static int64_t read_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t numatp_clock(void) { return read_clock(CLOCK_MONOTONIC); }
int64_t numatp_own_clock(void) { return read_clock(CLOCK_THREAD_CPUTIME_ID); }

void numatp_sleep(int64_t ns)
{
    nanosleep(&(struct timespec){ns / 1000000000, ns % 1000000000}, NULL);
}

static inline void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* What a waiter looks at now and then. A peer found dead ends the wait at the next look only: what we wait for may have
 * come before the death, for example when all have met and the other one has already left. */
static bool look(struct numatp_ranks *ranks, struct numatp_patience *patience, enum numatp_watch watch)
{
    if (numatp_aborted(ranks))
        return false;
    if (watch != NUMATP_WATCH_PEERS)
        return true;
    if (patience->dead) {
        numatp_abort_dead(ranks, patience->dead);
        return false;
    }
    if (patience->waited - patience->looked > PEERS_NS) {
        patience->looked = patience->waited;
        patience->dead = numatp_dead_peer(ranks);
    }
    return true;
}

bool numatp_wait_more(struct numatp_ranks *ranks, struct numatp_patience *patience, enum numatp_watch watch)
{
    if (ranks->crowded)
        sched_yield();
    else
        spin_pause();
    if (++patience->turns % (ranks->crowded ? TURNS_YIELDING : TURNS_SPINNING))
        return true;

    int64_t now = numatp_clock();
    if (!patience->since)
        patience->since = now;
    patience->waited = now - patience->since;
    if (watch != NUMATP_WATCH_NOTHING && !look(ranks, patience, watch))
        return false;
    if (patience->waited > YIELD_NS) {
        if (ranks->crowded)
            numatp_sleep(CROWDED_NAP_NS);
        else
            sched_yield();
    }
    return true;
}

/* ------------------------------------------------------------------ gates
 *
 * Nobody is left asleep because both sides store first and load then: the opener stores the sequence and loads `asleep`,
 * the sleeper stores `asleep` and loads the sequence. All four are seq_cst, so at least one of the two sees the other. */

static void futex(_Atomic uint32_t *word, int operation, bool shared, uint32_t value, const struct timespec *timeout)
{
    syscall(SYS_futex, word, operation | (shared ? 0 : FUTEX_PRIVATE_FLAG), value, timeout, NULL, 0);
}

void numatp_gate_open(struct numatp_gate *gate, int64_t sequence, bool shared)
{
    atomic_store_explicit(&gate->sequence, sequence, memory_order_seq_cst);
    NUMATP_TEST_DELAY();
    if (atomic_load_explicit(&gate->asleep, memory_order_seq_cst))
        numatp_gate_ring(gate, shared);
}

/* `asleep` falls before the bell rings: whoever falls asleep after the ring has then raised it again. */
void numatp_gate_ring(struct numatp_gate *gate, bool shared)
{
    atomic_store_explicit(&gate->asleep, 0, memory_order_seq_cst);
    atomic_fetch_add_explicit(&gate->bell, 1, memory_order_seq_cst);
    futex(&gate->bell, FUTEX_WAKE, shared, INT_MAX, NULL);
}

/* At a shared gate ranks wait for rank 0, at a private one workers for their thread 0, who wakes them in any case. */
bool numatp_gate_wait(struct numatp_ranks *ranks, struct numatp_gate *gate, int64_t sequence, bool shared)
{
    const enum numatp_watch watch = shared ? NUMATP_WATCH_PEERS : NUMATP_WATCH_NOTHING;
    const struct timespec timeout = {NUMATP_LOOK_NS / 1000000000, NUMATP_LOOK_NS % 1000000000};
    const int64_t awake = ranks->crowded && CROWDED_AWAKE_NS < NUMATP_AWAKE_NS ? CROWDED_AWAKE_NS : NUMATP_AWAKE_NS;
    struct numatp_patience patience = {0};

    while (atomic_load_explicit(&gate->sequence, memory_order_acquire) < sequence) {
        if (patience.waited < awake) {
            if (!numatp_wait_more(ranks, &patience, watch))
                return false;
            continue;
        }
        uint32_t bell = atomic_load_explicit(&gate->bell, memory_order_seq_cst);
        atomic_store_explicit(&gate->asleep, 1, memory_order_seq_cst);
        if (atomic_load_explicit(&gate->sequence, memory_order_seq_cst) >= sequence)
            return true;
        NUMATP_TEST_DELAY();
        patience.waited = numatp_clock() - patience.since;
        if (watch != NUMATP_WATCH_NOTHING && !look(ranks, &patience, watch))
            return false;
        if (!patience.dead)
            futex(&gate->bell, FUTEX_WAIT, shared, bell, shared ? &timeout : NULL);
    }
    return true;
}
