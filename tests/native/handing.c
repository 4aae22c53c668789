/* Threads that go on with what the one before them handed on, every word checked: `handing THREADS RUNS`.
 *
 * Exit status 0 only if all was right; a hang ends by alarm. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "numatp.h"

#ifndef SECONDS
#define SECONDS 100
#endif
#define TIMES 6 /* in each program, without a barrier in between */
#define MOST 64

static int64_t run_now, words[TIMES][MOST][16]; /* what thread i handed on, on a line of its own */
static int64_t waits[TIMES][MOST];
static _Atomic int wrong;

static int64_t word(int64_t time, int64_t thread) { return run_now * 1000 + time * 100 + thread; }

static void write_word(void *args, int64_t thread, int64_t threads)
{
    int64_t time = ((int64_t *)args - waits[0]) / MOST;
    unsigned state = (unsigned)(run_now * 7919 + thread * 104729 + time);
    (void)threads;
    for (volatile int turns = rand_r(&state) % 64 ? 0 : rand_r(&state) % 3000; turns > 0; turns--)
        ;
    words[time][thread][0] = word(time, thread);
}

static void check_word(void *args, int64_t thread, int64_t threads)
{
    int64_t time = ((int64_t *)args - waits[0]) / MOST;
    (void)threads;
    if (waits[time][thread] && words[time][thread - 1][0] != word(time, thread - 1))
        wrong = 1;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    const int threads = atoi(argv[1]);
    static int32_t nowhere[MOST];
    memset(nowhere, 0xFF, sizeof nowhere);
    alarm(SECONDS);
    void *control = mmap(NULL, (size_t)numatp_control_bytes(1), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct numatp_ranks *ranks = numatp_ranks_open(control, 0, 1, NULL, 1);
    struct numatp_team *team = numatp_team_open(ranks, threads, nowhere, nowhere);
    struct numatp_hand_args hands[TIMES];
    struct numatp_op ops[4 * TIMES];
    for (int k = 0; k < TIMES; k++) {
        for (int i = 1; i < threads; i++)
            waits[k][i] = (i + k) % 3 != 0;
        hands[k] = (struct numatp_hand_args){team, waits[k]};
        ops[4 * k] = (struct numatp_op){write_word, waits[k], 0};
        ops[4 * k + 1] = (struct numatp_op){numatp_hand_on, &hands[k], 0};
        ops[4 * k + 2] = (struct numatp_op){numatp_take_over, &hands[k], 0};
        ops[4 * k + 3] = (struct numatp_op){check_word, waits[k], 0};
    }
    struct numatp_program program = {.ops = ops, .num_ops = 4 * TIMES};
    for (run_now = 1; run_now <= atoll(argv[2]) && !wrong; run_now++)
        if (numatp_team_run(team, &program) != NUMATP_OK)
            wrong = 1;
    numatp_team_close(team);
    numatp_ranks_close(ranks);
    return wrong;
}
