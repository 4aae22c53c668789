/* The team: the threads of one rank, their barrier, the executor of programs, and Steps. */
#include "internal.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_AT_ONE 8        /* threads, or barriers of threads, that share a counter */
#define STOP (-1)            /* program index that ends the service */

/* Holds `expected` threads until all have arrived. The last one arrives at the parent for all, then lets the others go. */
struct barrier {
    _Alignas(NUMATP_LINE) _Atomic int32_t arrived;
    int32_t expected;
    struct barrier *parent;
    _Alignas(NUMATP_LINE) _Atomic int64_t generation; /* times that all have arrived */
};

struct member {
    _Alignas(NUMATP_LINE) _Atomic int64_t finished; /* runs that this thread has left, also by an abort */
    _Alignas(NUMATP_LINE) _Atomic int64_t handed; /* ops numatp_hand_on that it has come to */
    _Alignas(NUMATP_LINE) struct barrier *barrier;
    struct numatp_team *team;
    int thread;
    pthread_t worker;
};

struct numatp_team {
    struct numatp_gate gate; /* sequence: programs begun; opened by thread 0 */
    struct numatp_ranks *ranks;
    int threads;
    int64_t runs;
    const struct numatp_program *current; /* NULL: the workers end */
    const struct numatp_program *programs; /* [num_programs] */
    int64_t num_programs;
    struct barrier *barriers; /* a tree: each with its parent above it */
    struct member members[];  /* [threads] */
};

/* ------------------------------------------------------------------ barrier */

static bool arrive(struct numatp_ranks *ranks, struct barrier *barrier)
{
    int64_t generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed); /* cannot move before we have arrived */
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 < barrier->expected)
        return numatp_wait(ranks, &barrier->generation, generation + 1, NUMATP_WATCH_ABORT);
    if (barrier->parent && !arrive(ranks, barrier->parent))
        return false;
    atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
    return true;
}

static inline bool pass_barrier(struct numatp_team *team, int thread)
{
    return team->threads == 1 || arrive(team->ranks, team->members[thread].barrier);
}

/* Some barriers below as few as hold MOST_AT_ONE each, these again, up to a single one, which is returned. `made`: how many there
 * are in all. Neighbours stay together. */
static int join_barriers(struct barrier *all, int *made, int *some, int count)
{
    while (count > 1) {
        int parents = (count + MOST_AT_ONE - 1) / MOST_AT_ONE;
        for (int i = 0; i < count; i++) {
            struct barrier *parent = &all[*made + (int64_t)i * parents / count];
            all[some[i]].parent = parent;
            parent->expected++;
        }
        for (int i = 0; i < parents; i++)
            some[i] = (*made)++;
        count = parents;
    }
    return some[0];
}

/* How many threads the group of thread `first` has, 0 where it is not the first of them. */
static int size_of_group(const int32_t *groups, int threads, int first)
{
    int size = 0;
    for (int i = 0; i < threads; i++) {
        if (groups[i] == groups[first] && i < first)
            return 0;
        size += groups[i] == groups[first];
    }
    return size;
}

/* A line that k threads add to is fetched k times, one after the other, and across L3 caches several times as slowly: so at most
 * MOST_AT_ONE threads of one L3 share a counter, the last of them goes on to one above, and an L3 sends one to those between L3s. */
static bool make_barriers(struct numatp_team *team, const int32_t *groups)
{
    const int threads = team->threads;
    int made = 0, num_tops = 0, *tops = malloc((size_t)threads * sizeof *tops), *leaves = malloc((size_t)threads * sizeof *leaves);
    team->barriers = aligned_alloc(NUMATP_LINE, (size_t)(2 * threads) * sizeof *team->barriers); /* leaves, and fewer above them */
    const bool there = tops && leaves && team->barriers;
    if (there)
        memset(team->barriers, 0, (size_t)(2 * threads) * sizeof *team->barriers);
    for (int first = 0; there && first < threads; first++) {
        int size = size_of_group(groups, threads, first), num_leaves = (size + MOST_AT_ONE - 1) / MOST_AT_ONE, nth = 0;
        if (!size)
            continue;
        for (int i = first; i < threads; i++)
            if (groups[i] == groups[first]) {
                struct barrier *leaf = &team->barriers[made + nth++ * num_leaves / size];
                leaf->expected++;
                team->members[i].barrier = leaf;
            }
        for (int i = 0; i < num_leaves; i++)
            leaves[i] = made++;
        tops[num_tops++] = join_barriers(team->barriers, &made, leaves, num_leaves);
    }
    if (there)
        join_barriers(team->barriers, &made, tops, num_tops);
    free(tops);
    free(leaves);
    return there;
}

/* ------------------------------------------------------------------ executor */

/* The same as execute, with a look at the clock around barriers and ops. */
static bool execute_timed(struct numatp_team *team, int thread, const struct numatp_program *program)
{
    const int threads = team->threads;
    const int64_t num_ops = program->num_ops;
    struct numatp_times *times = program->times + thread * (num_ops + 1);
    int64_t (*now)(void) = program->own_time ? numatp_own_clock : numatp_clock;
    int64_t left = now(); /* the last op */
    for (int64_t i = 0; i <= num_ops; i++) {
        const struct numatp_op *op = &program->ops[i];
        int64_t began = left;
        if (i == num_ops || op->barrier) {
            if (!pass_barrier(team, thread))
                return false;
            began = now();
            times[i].waited += began - left;
        }
        if (i == num_ops)
            break;
        if (numatp_aborted(team->ranks))
            return false;
        op->run(op->args, thread, threads);
        left = now();
        times[i].ran += left - began;
    }
    return pass_barrier(team, thread); /* whoever reads the table when the run is over finds all of it */
}

/* Nothing of the program or the team's fields is read after the last barrier: thread 0 may then be preparing the next run. */
static bool execute(struct numatp_team *team, int thread, const struct numatp_program *program)
{
    if (program->times)
        return execute_timed(team, thread, program);
    const int threads = team->threads;
    const struct numatp_op *op = program->ops, *end = op + program->num_ops;
    for (; op < end; op++) {
        if (op->barrier && !pass_barrier(team, thread))
            return false;
        if (numatp_aborted(team->ranks))
            return false;
        op->run(op->args, thread, threads);
    }
    return pass_barrier(team, thread);
}

static void *work(void *argument)
{
    struct member *member = argument;
    struct numatp_team *team = member->team;
    for (int64_t run = 1;; run++) {
        numatp_gate_wait(team->ranks, &team->gate, run, false);
        if (!team->current)
            return NULL;
        execute(team, member->thread, team->current);
        atomic_store_explicit(&member->finished, run, memory_order_release);
    }
}

static void begin(struct numatp_team *team, const struct numatp_program *program)
{
    team->current = program;
    if (team->threads > 1)
        numatp_gate_open(&team->gate, ++team->runs, false);
}

static int run(struct numatp_team *team, const struct numatp_program *program)
{
    if (numatp_aborted(team->ranks))
        return NUMATP_ABORTED;
    begin(team, program);
    /* A sync that gave up returns like one that did not: only a job that still runs at the end has a result. */
    if (execute(team, 0, program) && !numatp_aborted(team->ranks))
        return NUMATP_OK;
    /* Not before every worker is out: the caller may unmap what their kernels touch. */
    for (int i = 1; i < team->threads; i++)
        numatp_wait(team->ranks, &team->members[i].finished, team->runs, NUMATP_WATCH_NOTHING);
    return NUMATP_ABORTED;
}

int numatp_team_run(struct numatp_team *team, const struct numatp_program *program)
{
    if (numatp_forked(team->ranks))
        return NUMATP_FORKED;
    if (program->num_syncs) { /* it would wait for ranks that do not run it */
        errno = EINVAL;
        return NUMATP_SYSTEM;
    }
    return run(team, program);
}

/* ------------------------------------------------------------------ open and close */

static void end_workers(struct numatp_team *team, int started)
{
    begin(team, NULL);
    for (int i = 1; i < started; i++)
        pthread_join(team->members[i].worker, NULL);
}

static int start_worker(struct member *member, int32_t cpu)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (cpu >= 0) { /* born on its cpu: its stack is then on its node */
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    int error = pthread_create(&member->worker, &attributes, work, member);
    pthread_attr_destroy(&attributes);
    if (!error) {
        char name[16];
        snprintf(name, sizeof name, "numatp-%d-%d", member->team->ranks->rank, member->thread);
        pthread_setname_np(member->worker, name);
    }
    return error;
}

/* Signals are for the user's threads. Those that report a fault of the thread itself stay, or faulthandler is mute. */
static void block_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

struct numatp_team *numatp_team_open(struct numatp_ranks *ranks, int threads, const int32_t *cpus, const int32_t *groups)
{
    if (threads < 1) {
        errno = EINVAL;
        return NULL;
    }
    size_t bytes = sizeof(struct numatp_team) + (size_t)threads * sizeof(struct member);
    struct numatp_team *team = aligned_alloc(NUMATP_LINE, (size_t)numatp_round_up((int64_t)bytes, NUMATP_LINE));
    if (!team)
        return NULL;
    memset(team, 0, bytes);
    team->ranks = ranks;
    team->threads = threads;
    for (int i = 0; i < threads; i++) {
        team->members[i].team = team;
        team->members[i].thread = i;
    }
    int error = make_barriers(team, groups) ? 0 : ENOMEM, started = 1;
    if (!error && cpus[0] >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpus[0], &set);
        error = sched_setaffinity(0, sizeof set, &set) < 0 ? errno : 0;
    }
    sigset_t before;
    block_signals(&before);
    for (; !error && started < threads; started += !error)
        error = start_worker(&team->members[started], cpus[started]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        return team;
    end_workers(team, started);
    free(team->barriers);
    free(team);
    errno = error;
    return NULL;
}

void numatp_team_close(struct numatp_team *team)
{
    if (!team)
        return;
    if (!numatp_forked(team->ranks)) /* a child made by fork has no workers */
        end_workers(team, team->threads);
    free(team->barriers);
    free(team);
}

struct numatp_ranks *numatp_team_ranks(const struct numatp_team *team)
{
    return team->ranks;
}

/* ------------------------------------------------------------------ Steps */

void numatp_team_programs(struct numatp_team *team, const struct numatp_program *programs, int64_t num_programs)
{
    team->programs = programs;
    team->num_programs = num_programs;
}

/* Until every other rank has finished Step `step`. */
static bool wait_done(struct numatp_ranks *ranks, int64_t step)
{
    for (int r = 1; r < ranks->size; r++)
        if (!numatp_wait(ranks, &ranks->control->rank[r].done, step, NUMATP_WATCH_PEERS))
            return false;
    return true;
}

/* The gate's fields are rewritten only after all ranks have read the last ones. */
static bool publish(struct numatp_ranks *ranks, int64_t program, int64_t num_syncs)
{
    struct numatp_gate *steps = &ranks->control->steps;
    if (!wait_done(ranks, ranks->step))
        return false;
    steps->program = program;
    steps->num_syncs = num_syncs;
    numatp_gate_open(steps, ++ranks->step, true);
    return true;
}

static int run_step(struct numatp_team *team, const struct numatp_program *program)
{
    int status = run(team, program);
    if (status == NUMATP_OK)
        team->ranks->base += program->num_syncs;
    return status;
}

int numatp_team_step(struct numatp_team *team, int64_t program)
{
    struct numatp_ranks *ranks = team->ranks;
    if (numatp_forked(ranks))
        return NUMATP_FORKED;
    if (ranks->rank || program < 0 || program >= team->num_programs) {
        errno = EINVAL;
        return NUMATP_SYSTEM;
    }
    const struct numatp_program *named = &team->programs[program];
    if (numatp_aborted(ranks) || (ranks->hosts && !numatp_hosts_announce(ranks, program, named)))
        return NUMATP_ABORTED;
    if (!publish(ranks, program, named->num_syncs))
        return NUMATP_ABORTED;
    int status = run_step(team, named);
    if (status == NUMATP_OK && (!wait_done(ranks, ranks->step) || (ranks->hosts && !numatp_hosts_collect(ranks))))
        status = NUMATP_ABORTED;
    return status;
}

/* A program that differs between ranks would make them wait for each other without end. */
static const struct numatp_program *agreed_program(struct numatp_team *team)
{
    const struct numatp_gate *steps = &team->ranks->control->steps;
    int64_t have = -1;
    if (steps->program < team->num_programs) {
        have = team->programs[steps->program].num_syncs;
        if (have == steps->num_syncs)
            return &team->programs[steps->program];
    }
    char text[NUMATP_ABORT_BYTES];
    snprintf(text, sizeof text, "program %lld has %lld syncs on rank 0 and %lld on rank %d (-1: there is none)",
             (long long)steps->program, (long long)steps->num_syncs, (long long)have, team->ranks->first + team->ranks->rank);
    numatp_abort(team->ranks, text);
    return NULL;
}

/* The rank at seat 0 of another host than rank 0's: publishes here what comes from there. */
static int relay(struct numatp_team *team)
{
    struct numatp_ranks *ranks = team->ranks;
    for (;;) {
        struct numatp_step_header header;
        if (!numatp_hosts_next(ranks, &header))
            return NUMATP_ABORTED;
        if (header.program == STOP)
            return publish(ranks, STOP, 0) ? NUMATP_STOPPED : NUMATP_ABORTED;
        const struct numatp_program *program = header.program < team->num_programs ? &team->programs[header.program] : NULL;
        if (!program || (program->crossings && header.crossings != program->crossings)) {
            numatp_abort(ranks, "the hosts of this job run different programs");
            return NUMATP_ABORTED;
        }
        if (!numatp_hosts_hear(ranks, program) || !publish(ranks, header.program, program->num_syncs)
            || run_step(team, program) != NUMATP_OK || !wait_done(ranks, ranks->step) || !numatp_hosts_answer(ranks, program))
            return NUMATP_ABORTED;
    }
}

int numatp_team_serve(struct numatp_team *team)
{
    struct numatp_ranks *ranks = team->ranks;
    if (numatp_forked(ranks))
        return NUMATP_FORKED;
    if (!ranks->rank)
        return relay(team);
    for (;;) {
        struct numatp_gate *steps = &ranks->control->steps;
        if (!numatp_gate_wait(ranks, steps, ranks->step + 1, true))
            return NUMATP_ABORTED;
        ranks->step++;
        const bool stop = steps->program == STOP;
        if (!stop) {
            const struct numatp_program *program = agreed_program(team);
            if (!program || run_step(team, program) != NUMATP_OK)
                return NUMATP_ABORTED;
        }
        /* All threads are past the program's last barrier: what they wrote goes out with this. */
        atomic_store_explicit(&ranks->control->rank[ranks->rank].done, ranks->step, memory_order_release);
        if (stop)
            return NUMATP_STOPPED;
    }
}

int numatp_team_stop(struct numatp_team *team)
{
    struct numatp_ranks *ranks = team->ranks;
    if (numatp_forked(ranks))
        return NUMATP_FORKED;
    if (ranks->step && ranks->control->steps.program == STOP) /* stopped already */
        return NUMATP_OK;
    if (numatp_aborted(ranks) || (ranks->hosts && !numatp_hosts_announce(ranks, STOP, NULL)))
        return NUMATP_ABORTED;
    return publish(ranks, STOP, 0) ? NUMATP_OK : NUMATP_ABORTED;
}

/* ------------------------------------------------------------------ sync */

void numatp_sync(void *args, int64_t thread, int64_t threads)
{
    const struct numatp_sync_args *sync = args;
    (void)threads;
    numatp_sync_lane(sync->team->ranks, sync->ordinal, thread);
}

/* ------------------------------------------------------------------ handing on */

void numatp_hand_on(void *args, int64_t thread, int64_t threads)
{
    struct member *me = &((const struct numatp_hand_args *)args)->team->members[thread];
    (void)threads;
    atomic_store_explicit(&me->handed, atomic_load_explicit(&me->handed, memory_order_relaxed) + 1, memory_order_release);
}

void numatp_take_over(void *args, int64_t thread, int64_t threads)
{
    const struct numatp_hand_args *hand = args;
    struct member *me = &hand->team->members[thread];
    (void)threads;
    /* A wait that gave up returns like one that did not: the executor looks at the abort word before the next op. */
    if (hand->waits[thread])
        numatp_wait(hand->team->ranks, &me[-1].handed, atomic_load_explicit(&me->handed, memory_order_relaxed), NUMATP_WATCH_ABORT);
}
