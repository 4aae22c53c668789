/* One thread opens a gate again and again, another waits at it and falls asleep at once: `gates ROUNDS`.
 * Built with NUMATP_AWAKE_NS=0. A wake-up that is lost is a hang, which ends by alarm. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

#ifndef SET_ALARM
#define SET_ALARM() alarm(100) /* seconds without 1024 rounds until that counts as a hang */
#endif

static struct numatp_gate gate;
static struct numatp_ranks *ranks;
static _Atomic int64_t passed;
static int64_t rounds;
#define CONTESTED 32
static struct { _Alignas(64) _Atomic int word; } contested[CONTESTED];

/* So that each side may be first by a few nanoseconds, in the middle of what the other does; and so that a side's next store waits
 * behind others in its core's store buffer, for lines that the other core has: it may then come after the load that follows it,
 * where nothing forbids that. */
static void dawdle(unsigned *seed)
{
    for (volatile int turns = rand_r(seed) % 400; turns > 0; turns--)
        ;
    for (int i = rand_r(seed) % CONTESTED; i > 0; i--)
        atomic_store_explicit(&contested[i].word, i, memory_order_relaxed);
}

static void *wait_at_gate(void *argument)
{
    unsigned seed = 2;
    for (int64_t round = 1; round <= rounds; round++) {
        dawdle(&seed);
        numatp_gate_wait(ranks, &gate, round, false);
        atomic_store_explicit(&passed, round, memory_order_release);
    }
    return argument;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    rounds = atoll(argv[1]);
    void *control = aligned_alloc(4096, (size_t)numatp_control_bytes(1));
    for (int64_t i = 0; i < numatp_control_bytes(1); i++)
        ((char *)control)[i] = 0;
    ranks = numatp_ranks_open(control, 0, 1, NULL, 0);
    SET_ALARM();
    pthread_t waiter;
    pthread_create(&waiter, NULL, wait_at_gate, NULL);
    unsigned seed = 1;
    for (int64_t round = 1; round <= rounds; round++) {
        while (atomic_load_explicit(&passed, memory_order_acquire) < round - 1)
            ;
        if (round % 1024 == 0)
            SET_ALARM();
        dawdle(&seed);
        numatp_gate_open(&gate, round, false);
    }
    pthread_join(waiter, NULL);
    numatp_ranks_close(ranks);
    free(control);
    printf("%lld rounds\n", (long long)rounds);
    return 0;
}
