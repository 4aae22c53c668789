/* The other hosts: who speaks for them, whether they live, and what is arranged with them before there is work. */
#include "hosts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BEAT_NS (NUMATP_SILENCE_NS / 10) /* between two signs of life to another host */
#define LISTEN_NS 50000000  /* between two looks for signs of life, and for an abort that others must hear of */
#define DEAF_NS 3000000000 /* from the end of a job to that of a process that has not asked why: it reads or compiles */
#define SWAP_NS 50000000    /* a swap that is not complete returns to the caller this often */
#define SWAP_NAP_NS 100000

/* With hosts->jobs held: what the others are to hear of. */
static void note_end(struct numatp_hosts *hosts)
{
    hosts->ended.job = hosts->number;
    snprintf(hosts->ended.text, sizeof hosts->ended.text, "%s", numatp_abort_reason(hosts->job));
}

static void sign_of_life(struct numatp_hosts *hosts, int other, int64_t now)
{
    if (numatp_look_out(hosts, &hosts->heard[other]) == 0) {
        hosts->told[other] = hosts->hearing[other];
        hosts->heard_at[other] = now;
        numatp_receive(hosts, &hosts->heard[other], &hosts->hearing[other], sizeof(struct beat), hosts->leader[other], TAG_BEAT);
    }
    if (hosts->job && hosts->told[other].job == hosts->number) /* not an earlier one; of a later one we hear before we are there */
        numatp_abort(hosts->job, hosts->told[other].text);
    bool due = now - hosts->said_at[other] > BEAT_NS || hosts->saying[other].job != hosts->ended.job;
    if (due && numatp_look_out(hosts, &hosts->said[other]) == 0) { /* the last one has left */
        hosts->saying[other] = hosts->ended;
        hosts->said_at[other] = now;
        numatp_send(hosts, &hosts->said[other], &hosts->saying[other], sizeof(struct beat), hosts->leader[other], TAG_BEAT);
    }
}

/* Ends this process if its job has ended and nobody in it has noticed for long: no launcher can where a link is down. */
static void end_the_deaf(struct numatp_hosts *hosts, struct numatp_ranks *job)
{
    if (!numatp_aborted(job) || atomic_load_explicit(&job->asked_why, memory_order_relaxed)) {
        hosts->deaf_since = 0;
        return;
    }
    if (!hosts->deaf_since)
        hosts->deaf_since = numatp_clock();
    if (numatp_clock() - hosts->deaf_since < DEAF_NS)
        return;
    bool first = hosts->host == 0 && hosts->seat == 0; /* which speaks for all ranks */
    if (first || numatp_abort_witness(job))
        dprintf(STDERR_FILENO, "numatp: %s\n", numatp_abort_reason(job));
    _exit(EXIT_FAILURE);
}

static void *beat(void *argument)
{
    struct numatp_hosts *hosts = argument;
    while (!atomic_load_explicit(&hosts->stop, memory_order_relaxed)) {
        pthread_mutex_lock(&hosts->jobs);
        struct numatp_ranks *job = hosts->job;
        if (job && numatp_aborted(job))
            note_end(hosts);
        for (int other = 0; other < hosts->hosts && hosts->seat == 0; other++) {
            if (other == hosts->host)
                continue;
            int64_t now = numatp_clock();
            sign_of_life(hosts, other, now);
            if (now - hosts->heard_at[other] > NUMATP_SILENCE_NS)
                atomic_store_explicit(&hosts->silent, 1 + other, memory_order_relaxed);
        }
        if (job) {
            numatp_hosts_ended(hosts, job);
            end_the_deaf(hosts, job);
        }
        pthread_mutex_unlock(&hosts->jobs);
        numatp_sleep(LISTEN_NS);
    }
    return NULL;
}

/* ------------------------------------------------------------------ open and close */

struct numatp_hosts *numatp_hosts_open(const struct numatp_mpi *mpi, int host, int num_hosts, int seat, const int32_t *leaders,
                                       const char *const *names)
{
    if (num_hosts < 2 || num_hosts > NUMATP_MAX_RANKS || host < 0 || host >= num_hosts) {
        errno = EINVAL;
        return NULL;
    }
    struct numatp_hosts *hosts = calloc(1, sizeof *hosts);
    if (!hosts)
        return NULL;
    hosts->mpi = *mpi;
    hosts->host = host;
    hosts->hosts = num_hosts;
    hosts->seat = seat;
    pthread_mutex_init(&hosts->turn, NULL);
    pthread_mutex_init(&hosts->jobs, NULL);
    pthread_mutex_init(&hosts->carrying, NULL);
    pthread_cond_init(&hosts->begun, NULL);
    for (int other = 0; other < num_hosts; other++) {
        hosts->leader[other] = leaders[other];
        snprintf(hosts->name[other], sizeof hosts->name[other], "%s", names[other]);
    }
    for (int other = 0; other < num_hosts && seat == 0; other++)
        if (other != host) {
            hosts->heard_at[other] = numatp_clock();
            numatp_receive(hosts, &hosts->heard[other], &hosts->hearing[other], sizeof(struct beat), leaders[other], TAG_BEAT);
        }
    int error = pthread_create(&hosts->heart, NULL, beat, hosts);
    if (!error) {
        hosts->beating = true;
        error = pthread_create(&hosts->carrier, NULL, numatp_carry, hosts);
        hosts->carried = !error;
    }
    if (error) {
        numatp_hosts_quiet(hosts);
        free(hosts);
        errno = error;
        return NULL;
    }
    return hosts;
}

void numatp_hosts_quiet(struct numatp_hosts *hosts)
{
    if (!hosts->beating)
        return;
    hosts->beating = false;
    pthread_mutex_lock(&hosts->carrying);
    atomic_store(&hosts->stop, true);
    pthread_cond_signal(&hosts->begun);
    pthread_mutex_unlock(&hosts->carrying);
    pthread_join(hosts->heart, NULL);
    if (hosts->carried)
        pthread_join(hosts->carrier, NULL);
    for (int other = 0; other < hosts->hosts; other++) /* one more sign of life is always waited for */
        numatp_cancel(hosts, &hosts->heard[other]);
}

void numatp_ranks_hosts(struct numatp_ranks *ranks, struct numatp_hosts *hosts)
{
    ranks->hosts = hosts;
    ranks->first = hosts->leader[hosts->host];
    pthread_mutex_lock(&hosts->jobs);
    hosts->job = ranks;
    ranks->job = ++hosts->number;
    pthread_mutex_unlock(&hosts->jobs);
}

void numatp_hosts_leave(struct numatp_ranks *ranks)
{
    struct numatp_hosts *hosts = ranks->hosts;
    if (!hosts)
        return;
    pthread_mutex_lock(&hosts->jobs);
    if (hosts->job == ranks) {
        if (numatp_aborted(ranks))
            note_end(hosts);
        hosts->job = NULL;
    }
    pthread_mutex_unlock(&hosts->jobs);
    pthread_mutex_lock(&hosts->carrying); /* of a job that was aborted they never come */
    hosts->halves[0].count = hosts->halves[1].count = 0;
    pthread_mutex_unlock(&hosts->carrying);
}

/* MPI may still write into the caller's memory. */
static int give_up(struct numatp_hosts *hosts)
{
    hosts->swap.count = 0;
    hosts->swapping = false;
    return NUMATP_ABORTED;
}

int numatp_hosts_swap(struct numatp_ranks *ranks, const void *mine, int64_t mine_bytes, void *theirs, int64_t room)
{
    struct numatp_hosts *hosts = ranks->hosts;
    if (numatp_forked(ranks))
        return NUMATP_FORKED;
    const int tag = TAG_SWAP + ranks->job; /* what was sent for a job that has ended stays out of later ones */
    if (!hosts->swapping) {
        for (int other = 0; other < hosts->hosts; other++)
            if (other != hosts->host
                && (!numatp_receive(hosts, &hosts->swap, (char *)theirs + other * room, room, hosts->leader[other], tag)
                    || !numatp_send(hosts, &hosts->swap, mine, mine_bytes, hosts->leader[other], tag))) {
                numatp_not_sent(hosts, ranks);
                return give_up(hosts);
            }
        hosts->swapping = true;
    }
    for (int64_t end = numatp_clock() + SWAP_NS;;) {
        if (numatp_look_out(hosts, &hosts->swap) == 0) {
            hosts->swapping = false;
            return NUMATP_OK;
        }
        if (numatp_hosts_ended(hosts, ranks) || numatp_aborted(ranks))
            return give_up(hosts);
        int dead = numatp_dead_peer(ranks);
        if (dead)
            numatp_abort_dead(ranks, dead);
        if (numatp_clock() > end)
            return NUMATP_PENDING;
        numatp_sleep(SWAP_NAP_NS);
    }
}

