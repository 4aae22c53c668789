/* What the C files for several hosts share: messages through the MPI library that the process has loaded.
 *
 * MPI is called by address and its handles are passed on as they are, so no header of any MPI is needed. Every call is made under
 * one lock: the engine's thread, the carrier, the thread that sets up, and the one that listens whether the others live take turns. */
#ifndef NUMATP_HOSTS_H
#define NUMATP_HOSTS_H

#include <pthread.h>

#include "internal.h"

#ifndef NUMATP_SILENCE_NS
#define NUMATP_SILENCE_NS 5000000000 /* without any sign of life: that host, or the link to it, is taken for dead */
#endif

enum { TAG_SUMS = 1, TAG_PASSED, TAG_STEP, TAG_TOLD, TAG_RETURNED, TAG_BEAT, TAG_SWAP }; /* and from TAG_SWAP on one for each job */

struct message {
    uint64_t request; /* MPI's: an int or a pointer, which lies at the start of the word */
    int peer;         /* the rank that it goes to or comes from */
};

/* Messages under way. */
struct flight {
    struct message *messages; /* [room] */
    int count, room;
};

struct beat {
    int64_t job; /* number of the last one that was aborted on that host, 0: none; and why */
    char text[NUMATP_ABORT_BYTES];
};

struct numatp_hosts {
    struct numatp_mpi mpi;
    pthread_mutex_t turn;
    int host, hosts, seat;
    int32_t leader[NUMATP_MAX_RANKS]; /* by host: the rank at seat 0, which speaks for it */
    char name[NUMATP_MAX_RANKS][64];
    struct flight sums, step, swap;
    struct flight halves[2];  /* sums under way while the team computes */
    pthread_mutex_t carrying; /* held while these are begun or looked after */
    pthread_cond_t begun;
    pthread_t carrier; /* MPI over TCP goes on only while somebody calls it: this thread does, as long as they are under way */
    struct numatp_step_header header;
    int64_t answered[NUMATP_MAX_RANKS];
    bool swapping;

    pthread_mutex_t jobs;                /* held while `job` is changed or used */
    struct numatp_ranks *job;            /* ends when another host does; NULL: there is none */
    int number;                          /* of the job, or of the last one: 1, 2, ..., the same on all hosts */
    struct beat ended;                   /* which of our jobs was aborted last */
    int64_t deaf_since;                  /* ns: it had ended by then, and nobody here has asked why */
    _Atomic int32_t silent;              /* 1 + a host from which nothing comes */
    _Atomic int32_t lost;                /* 1 + a rank with which MPI could not exchange a message */
    _Atomic bool stop;
    bool beating, carried; /* whether heart and carrier run */
    pthread_t heart;
    struct flight said[NUMATP_MAX_RANKS], heard[NUMATP_MAX_RANKS];
    int64_t said_at[NUMATP_MAX_RANKS], heard_at[NUMATP_MAX_RANKS];
    struct beat saying[NUMATP_MAX_RANKS], hearing[NUMATP_MAX_RANKS], told[NUMATP_MAX_RANKS];
};

/* MPI_Isend and MPI_Irecv, into the messages under way. peer: a rank. False where MPI or memory fails. */
bool numatp_send(struct numatp_hosts *, struct flight *, const void *at, int64_t bytes, int peer, int tag);
bool numatp_receive(struct numatp_hosts *, struct flight *, void *at, int64_t bytes, int peer, int tag);

/* How many have not arrived yet. A message that MPI reports an error for never does: its peer is lost. */
int numatp_look_out(struct numatp_hosts *, struct flight *);

/* Gives up what was to be received. No other thread calls MPI any more. */
void numatp_cancel(struct numatp_hosts *, struct flight *);

/* The thread that looks after hosts->halves. */
void *numatp_carry(void *hosts);

/* Waits until all have arrived. False: give up, the job has ended. */
bool numatp_land(struct numatp_hosts *, struct numatp_ranks *, struct flight *);

/* Ends the job if a host is silent or a rank lost, which it then is: true. */
bool numatp_hosts_ended(struct numatp_hosts *, struct numatp_ranks *);

/* Ends the job because a message could not be sent or expected, and is false. */
bool numatp_not_sent(struct numatp_hosts *, struct numatp_ranks *);

#endif
