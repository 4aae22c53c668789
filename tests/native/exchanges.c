/* Random exchanges between ranks with every result checked: `exchanges MODE THREADS STEPS CROWDED [FAULT]`.
 *
 * MODE: processes or threads (ranks as thread groups, for ThreadSanitizer). THREADS: one number per rank, like 2,1.
 * FAULT: nobarrier (before the sync), onebuffer (instead of two), kill (rank 1 dies in the middle: success is a clean abort),
 * abort (rank 1 aborts in the middle and lives on until the others have noticed),
 * skipempty (an empty lane of rank 1 does not publish), onesync (of the two of the long form); lanes is no fault: each lane fills, sums and
 * checks its own part, with one barrier between reading an exchange and the next one; nolanebarrier leaves that out.
 * Exit status 0 only if all was right; a hang ends by alarm. Prints exchanges and microseconds per exchange. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "numatp.h"

#define MAX_LENGTH 4096 /* floats of one partial buffer */
#ifndef SET_ALARM
#define SET_ALARM() alarm(100) /* seconds without a Step until that counts as a hang */
#endif
#define EXCHANGES 6
#define ENOUGH "rank 1 has had enough"

static const int64_t LENGTHS[EXCHANGES] = {1000, 3, 333, 4096, 64, 1}; /* some shorter than there are lanes */

static int size, threads_of[NUMATP_MAX_RANKS], lanes, crowded, no_barrier, one_buffer, kill_one, abort_one, by_threads, skip_empty, one_sync, by_lanes, no_lane_barrier;
static int64_t steps;
static char *window; /* control, flags, partials [size][2][MAX_LENGTH] float, results [size], the step, whether rank 0 has noticed an abort */
static int64_t flags_at, partials_at, results_at, window_bytes;

struct rank {
    int rank;
    unsigned seed;
    struct numatp_ranks *ranks;
    struct numatp_team *team;
    float out[MAX_LENGTH];
};

struct exchange {
    struct rank *me;
    int64_t ordinal, length;
};

static _Atomic int wrong;

static float *partial(int rank, int64_t ordinal)
{
    int parity = one_buffer ? 0 : ordinal & 1;
    return (float *)(window + partials_at) + ((int64_t)rank * 2 + parity) * MAX_LENGTH;
}
static int64_t *result(int rank) { return (int64_t *)(window + results_at) + rank * 16; }
static int64_t step_now(void) { return *result(size); }

/* Small whole numbers: float sums are exact in any order. */
static float value(int rank, int64_t step, int64_t ordinal, int64_t i) { return (float)((rank + 1) * ((step * 31 + ordinal * 7 + i) % 97)); }

static void delay(struct rank *me, int64_t thread)
{
    unsigned state = me->seed + (unsigned)(step_now() * 7919 + thread * 104729);
    int turns = rand_r(&state) % 64 == 0 ? rand_r(&state) % 3000 : 0;
    for (volatile int i = 0; i < turns; i++)
        ;
}

static void fill(void *args, int64_t thread, int64_t threads)
{
    struct exchange *e = args;
    delay(e->me, thread);
    for (int64_t i = e->length * thread / threads; i < e->length * (thread + 1) / threads; i++)
        partial(e->me->rank, e->ordinal)[i] = value(e->me->rank, step_now(), e->ordinal, i);
}

static void sum(void *args, int64_t thread, int64_t threads)
{
    struct exchange *e = args;
    (void)threads;
    if (thread >= lanes)
        return;
    delay(e->me, thread + 17);
    for (int64_t i = e->length * thread / lanes; i < e->length * (thread + 1) / lanes; i++) {
        float total = 0;
        for (int r = 0; r < size; r++)
            total += partial(r, e->ordinal)[i];
        e->me->out[i] = total;
    }
}

/* The long form: in its lane, rank r makes the r-th part of the sum in its own buffer; after a second sync all gather. */
static void reduce(void *args, int64_t thread, int64_t threads)
{
    struct exchange *e = args;
    (void)threads;
    if (thread >= lanes)
        return;
    int64_t first = e->length * thread / lanes, last = e->length * (thread + 1) / lanes, count = last - first;
    delay(e->me, thread + 71);
    for (int64_t i = first + count * e->me->rank / size; i < first + count * (e->me->rank + 1) / size; i++) {
        float total = 0;
        for (int r = 0; r < size; r++)
            total += partial(r, e->ordinal)[i];
        partial(e->me->rank, e->ordinal)[i] = total;
    }
}

static void gather(void *args, int64_t thread, int64_t threads)
{
    struct exchange *e = args;
    (void)threads;
    if (thread >= lanes)
        return;
    int64_t first = e->length * thread / lanes, last = e->length * (thread + 1) / lanes, count = last - first;
    for (int r = 0; r < size; r++)
        for (int64_t i = first + count * r / size; i < first + count * (r + 1) / size; i++)
            e->me->out[i] = partial(r, e->ordinal)[i];
}

/* Each lane for itself: it fills, and later checks, only what it also exchanges. */
static void fill_lane(void *args, int64_t thread, int64_t threads)
{
    (void)threads;
    if (thread < lanes)
        fill(args, thread, lanes);
}

static void check_lane(void *args, int64_t thread, int64_t threads)
{
    struct exchange *e = args;
    (void)threads;
    for (int64_t i = e->length * thread / lanes; thread < lanes && i < e->length * (thread + 1) / lanes; i++) {
        float wanted = 0;
        for (int r = 0; r < size; r++)
            wanted += value(r, step_now(), e->ordinal, i);
        if (e->me->out[i] != wanted)
            wrong = 1;
    }
}

/* For the last exchange of a Step, whose one element leaves all lanes but one empty. */
static void sync_unless_empty(void *args, int64_t thread, int64_t threads)
{
    int64_t length = LENGTHS[EXCHANGES - 1];
    if (thread < lanes && length * thread / lanes != length * (thread + 1) / lanes)
        numatp_sync(args, thread, threads);
}

static void check(void *args, int64_t thread, int64_t threads)
{
    struct exchange *e = args;
    (void)threads;
    delay(e->me, thread + 31);
    for (int64_t i = 0; i < e->length; i++) {
        float wanted = 0;
        for (int r = 0; r < size; r++)
            wanted += value(r, step_now(), e->ordinal, i);
        if (e->me->out[i] != wanted)
            wrong = 1;
    }
}

/* The Step's result, written late by the last thread: rank 0 must not read it before that thread has come to the end. */
static void finish(void *args, int64_t thread, int64_t threads)
{
    struct rank *me = args;
    if (thread != threads - 1)
        return;
    delay(me, thread + 53);
    *result(me->rank) = step_now();
}

static void fail(struct numatp_ranks *ranks, const char *text)
{
    fprintf(stderr, "failed: %s\n", text);
    numatp_abort(ranks, text);
}

static int lead(struct numatp_ranks *ranks, struct rank *me)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int64_t step = 1; step <= steps; step++) {
        *result(size) = step;
        int status = numatp_team_step(me->team, 0);
        if (status != NUMATP_OK) {
            const char *text = numatp_abort_text(ranks);
            fprintf(stderr, "step %lld: %d %s\n", (long long)step, status, text);
            *result(size + 1) = 1;
            return status == NUMATP_ABORTED && (kill_one || abort_one) && strstr(text, kill_one ? "rank 1 (process " : ENOUGH) ? 0 : 1;
        }
        for (int r = 0; r < size; r++)
            if (*result(r) != step)
                wrong = 1;
        if (wrong) {
            fail(ranks, "a wrong result");
            return 1;
        }
        if (step % 997 == 0 || step == 3) /* long enough for the others to fall asleep */
            usleep(15000);
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    double us = ((double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) * 1e-3) / (double)(steps * EXCHANGES);
    printf("%lld exchanges, %.2f us each\n", (long long)(steps * EXCHANGES), us);
    return numatp_team_stop(me->team) == NUMATP_OK && !kill_one && !abort_one ? 0 : 1;
}

/* The first op of each Step. */
static void begin(void *args, int64_t thread, int64_t threads)
{
    struct rank *me = args;
    (void)threads;
    if (thread == 0)
        SET_ALARM();
    if (kill_one && me->rank == 1 && thread == 0 && step_now() == steps / 2)
        kill(getpid(), SIGKILL);
    if (abort_one && me->rank == 1 && thread == 0 && step_now() == steps / 2) {
        numatp_abort(me->ranks, ENOUGH);
        while (!*(volatile int64_t *)result(size + 1))
            usleep(1000);
    }
}

static int run_rank(int number)
{
    static int32_t nowhere[64];
    struct rank *me = calloc(1, sizeof *me);
    struct exchange exchanges[EXCHANGES];
    struct numatp_sync_args syncs[EXCHANGES + 1];
    struct numatp_op ops[EXCHANGES * 4 + 8];
    int num_ops = 0, num_syncs = 0, status;
    memset(nowhere, 0xFF, sizeof nowhere);
    int32_t groups[64];
    for (int i = 0; i < 64; i++)
        groups[i] = i / 12; /* barriers of three levels from 13 threads on */
    me->rank = number;
    me->seed = 1 + (unsigned)number * 977;
    struct numatp_ranks *ranks = numatp_ranks_open(window, number, size, NULL, crowded);
    me->ranks = ranks;
    me->team = numatp_team_open(ranks, threads_of[number], nowhere, groups);
    while ((status = numatp_meet(ranks)) == NUMATP_PENDING)
        ;
    if (status != NUMATP_OK)
        return 1;
    numatp_ranks_lanes(ranks, window + flags_at, lanes);
    while (numatp_meet(ranks) == NUMATP_PENDING)
        ;
    ops[num_ops++] = (struct numatp_op){begin, me, 0};
    for (int k = 0; k < EXCHANGES; k++) {
        int long_form = k == 3 && !by_lanes;
        exchanges[k] = (struct exchange){me, k + 1, LENGTHS[k]};
        ops[num_ops++] = (struct numatp_op){by_lanes ? fill_lane : fill, &exchanges[k], by_lanes && !no_lane_barrier};
        syncs[num_syncs] = (struct numatp_sync_args){me->team, num_syncs + 1};
        ops[num_ops++] = (struct numatp_op){skip_empty && number == 1 && k == EXCHANGES - 1 ? sync_unless_empty : numatp_sync, &syncs[num_syncs], !no_barrier && !by_lanes};
        num_syncs++;
        if (long_form) {
            ops[num_ops++] = (struct numatp_op){reduce, &exchanges[k], 0};
            if (!one_sync) {
                syncs[num_syncs] = (struct numatp_sync_args){me->team, num_syncs + 1};
                ops[num_ops++] = (struct numatp_op){numatp_sync, &syncs[num_syncs], 0};
                num_syncs++;
            }
        }
        ops[num_ops++] = (struct numatp_op){long_form ? gather : sum, &exchanges[k], 0};
        ops[num_ops++] = (struct numatp_op){by_lanes ? check_lane : check, &exchanges[k], !by_lanes};
    }
    ops[num_ops++] = (struct numatp_op){finish, me, 0};
    /* Every other rank is timed: what it adds up must be there when the run is over, and change nothing else. */
    struct numatp_times *times = number % 2 ? calloc((size_t)(threads_of[number] * (num_ops + 1)), sizeof *times) : NULL;
    struct numatp_program program = {.ops = ops, .num_ops = num_ops, .num_syncs = num_syncs, .times = times};
    numatp_team_programs(me->team, &program, 1);
    int outcome = number ? numatp_team_serve(me->team) != NUMATP_STOPPED : lead(ranks, me);
    numatp_team_close(me->team);
    numatp_ranks_close(ranks);
    free(times);
    free(me);
    return outcome || wrong;
}

static void *run_thread(void *argument) { return (void *)(intptr_t)run_rank((int)(intptr_t)argument); }

static int64_t page_up(int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    by_threads = !strcmp(argv[1], "threads");
    lanes = 64;
    for (char *part = strtok(argv[2], ","); part; part = strtok(NULL, ",")) {
        threads_of[size++] = atoi(part);
        lanes = atoi(part) < lanes ? atoi(part) : lanes;
    }
    steps = atoll(argv[3]) / EXCHANGES;
    crowded = atoi(argv[4]);
    const char *fault = argc > 5 ? argv[5] : "";
    no_barrier = !strcmp(fault, "nobarrier");
    one_buffer = !strcmp(fault, "onebuffer");
    kill_one = !strcmp(fault, "kill");
    abort_one = !strcmp(fault, "abort");
    skip_empty = !strcmp(fault, "skipempty");
    one_sync = !strcmp(fault, "onesync");
    no_lane_barrier = !strcmp(fault, "nolanebarrier");
    by_lanes = no_lane_barrier || !strcmp(fault, "lanes");
    flags_at = page_up(numatp_control_bytes(size));
    partials_at = flags_at + page_up(numatp_flag_bytes(size, lanes));
    results_at = partials_at + (int64_t)size * 2 * MAX_LENGTH * (int64_t)sizeof(float);
    window_bytes = page_up(results_at + (size + 2) * 128);
    window = mmap(NULL, (size_t)window_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    SET_ALARM();
    int failed = 0;
    if (by_threads) {
        pthread_t others[NUMATP_MAX_RANKS];
        for (int r = 1; r < size; r++)
            pthread_create(&others[r], NULL, run_thread, (void *)(intptr_t)r);
        failed = run_rank(0);
        for (int r = 1; r < size; r++) {
            void *other;
            pthread_join(others[r], &other);
            failed |= other != NULL;
        }
        return failed;
    }
    pid_t pids[NUMATP_MAX_RANKS];
    for (int r = 1; r < size; r++)
        if (!(pids[r] = fork()))
            exit((SET_ALARM(), run_rank(r)));
    failed = run_rank(0);
    for (int r = 1; r < size; r++) {
        int status;
        waitpid(pids[r], &status, 0);
        failed |= (!kill_one && !abort_one && status != 0) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM);
    }
    return failed;
}
