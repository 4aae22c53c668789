/* What the C files for several hosts share: messages through the MPI library that the process has loaded.
 *
 * MPI is called by address and its handles are passed on as they are, so no header of any MPI is needed. Every call is made under
 * one lock: the engine's thread, the thread that sets up, and the one that listens whether the others live take turns. */
#ifndef NUMATP_HOSTS_H
#define NUMATP_HOSTS_H

#include <pthread.h>

#include "internal.h"

#define NUMATP_SILENCE_NS 6000000000 /* without any sign of life: that host, or the link to it, is taken for dead */

enum { TAG_SUMS = 1, TAG_STEP, TAG_TOLD, TAG_RETURNED, TAG_SWAP, TAG_BEAT };

/* Messages under way. An MPI_Request is an int or a pointer, and lies at the start of a word. */
struct flight {
    uint64_t *requests; /* [room] */
    int count, room;
};

struct beat {
    int64_t aborted; /* whether the job of that host has ended, and why */
    char text[NUMATP_ABORT_BYTES];
};

struct numatp_hosts {
    struct numatp_mpi mpi;
    pthread_mutex_t turn;
    int host, hosts;
    bool leads;                  /* whether this rank speaks for its host: it has seat 0 */
    int32_t leader[NUMATP_MAX_RANKS], counterpart[NUMATP_MAX_RANKS]; /* by host, in MPI's communicator */
    char name[NUMATP_MAX_RANKS][64];
    struct flight sums, step, swap;
    struct numatp_step_header header;
    int64_t answered[NUMATP_MAX_RANKS];
    bool swapping;

    _Atomic(struct numatp_ranks *) job;  /* ends when another host does */
    _Atomic int32_t silent;              /* 1 + a host from which nothing comes */
    _Atomic bool stop;
    bool beating;
    pthread_t heart;
    struct flight said[NUMATP_MAX_RANKS], heard[NUMATP_MAX_RANKS];
    int64_t said_at[NUMATP_MAX_RANKS], heard_at[NUMATP_MAX_RANKS];
    bool told_of_abort[NUMATP_MAX_RANKS];
    struct beat saying, hearing[NUMATP_MAX_RANKS];
};

/* MPI_Isend and MPI_Irecv, into the messages under way. peer: a number in the communicator. False where MPI or memory fails. */
bool numatp_send(struct numatp_hosts *, struct flight *, const void *at, int64_t bytes, int peer, int tag);
bool numatp_receive(struct numatp_hosts *, struct flight *, void *at, int64_t bytes, int peer, int tag);

/* How many have not arrived yet; negative after an error of MPI. */
int numatp_look_out(struct numatp_hosts *, struct flight *);

/* Gives up what was to be received. No other thread calls MPI any more. */
void numatp_cancel(struct numatp_hosts *, struct flight *);

/* After a look that left so many. False: give up, the job has ended. */
bool numatp_go_on(struct numatp_hosts *, struct numatp_ranks *, int left);

/* Waits until all have arrived. False: give up, the job has ended. */
bool numatp_land(struct numatp_hosts *, struct numatp_ranks *, struct flight *);

/* Ends the job because nothing comes from host silent - 1. */
void numatp_say_silent(struct numatp_hosts *, struct numatp_ranks *, int silent);

/* Ends the job, and is false. */
bool numatp_not_sent(struct numatp_ranks *);

#endif
