/* Messages to other hosts: MPI's functions by address. */
#include "hosts.h"

#include <stdio.h>
#include <stdlib.h>

#define STATUS_WORDS 32 /* room for an MPI_Status of any MPI */

/* MPI's functions where handles are ints (MPICH), and where they are pointers (Open MPI). */
typedef int narrow_start(const void *, int, int32_t, int, int, int32_t, void *);
typedef int wide_start(const void *, int, void *, int, int, void *, void *);
typedef int test(void *, int *, void *);
typedef int cancel(void *);

/* MPI_Isend or MPI_Irecv of bytes. */
static int start(const struct numatp_hosts *hosts, void *function, const void *at, int64_t bytes, int peer, int tag, uint64_t *request)
{
    const struct numatp_mpi *mpi = &hosts->mpi;
    *request = 0;
    if (mpi->handle_bytes == sizeof(int32_t))
        return ((narrow_start *)function)(at, (int)bytes, (int32_t)mpi->byte, peer, tag, (int32_t)mpi->communicator, request);
    return ((wide_start *)function)(at, (int)bytes, (void *)mpi->byte, peer, tag, (void *)mpi->communicator, request);
}

static bool launch(struct numatp_hosts *hosts, struct flight *flight, void *function, const void *at, int64_t bytes, int peer, int tag)
{
    if (flight->count == flight->room) {
        int room = flight->room ? 2 * flight->room : 16;
        uint64_t *requests = realloc(flight->requests, (size_t)room * sizeof *requests);
        if (!requests)
            return false;
        flight->requests = requests;
        flight->room = room;
    }
    pthread_mutex_lock(&hosts->turn);
    int error = start(hosts, function, at, bytes, peer, tag, &flight->requests[flight->count]);
    pthread_mutex_unlock(&hosts->turn);
    flight->count += !error;
    return !error;
}

bool numatp_send(struct numatp_hosts *hosts, struct flight *flight, const void *at, int64_t bytes, int peer, int tag)
{
    return launch(hosts, flight, hosts->mpi.isend, at, bytes, peer, tag);
}

bool numatp_receive(struct numatp_hosts *hosts, struct flight *flight, void *at, int64_t bytes, int peer, int tag)
{
    return launch(hosts, flight, hosts->mpi.irecv, at, bytes, peer, tag);
}

int numatp_look_out(struct numatp_hosts *hosts, struct flight *flight)
{
    uint64_t status[STATUS_WORDS];
    for (int i = 0; i < flight->count;) {
        int done = 0;
        pthread_mutex_lock(&hosts->turn);
        int error = ((test *)hosts->mpi.test)(&flight->requests[i], &done, status);
        pthread_mutex_unlock(&hosts->turn);
        if (error)
            return -1;
        if (done)
            flight->requests[i] = flight->requests[--flight->count];
        else
            i++;
    }
    return flight->count;
}

void numatp_cancel(struct numatp_hosts *hosts, struct flight *flight)
{
    for (int i = 0; i < flight->count; i++)
        ((cancel *)hosts->mpi.cancel)(&flight->requests[i]);
    numatp_look_out(hosts, flight);
}

void numatp_say_silent(struct numatp_hosts *hosts, struct numatp_ranks *ranks, int silent)
{
    char text[NUMATP_ABORT_BYTES];
    snprintf(text, sizeof text, "nothing has come from host %s for %d s: it, its rank %d or the link to it is down",
             hosts->name[silent - 1], (int)(NUMATP_SILENCE_NS / 1000000000), hosts->leader[silent - 1]);
    numatp_abort(ranks, text);
}

bool numatp_go_on(struct numatp_hosts *hosts, struct numatp_ranks *ranks, int left)
{
    int silent = atomic_load_explicit(&hosts->silent, memory_order_relaxed);
    if (silent)
        numatp_say_silent(hosts, ranks, silent);
    else if (left < 0)
        numatp_abort(ranks, "MPI reports an error in a message between hosts");
    return !silent && left >= 0;
}

bool numatp_land(struct numatp_hosts *hosts, struct numatp_ranks *ranks, struct flight *flight)
{
    struct numatp_patience patience = {0};
    int left;
    while ((left = numatp_look_out(hosts, flight)) != 0)
        if (!numatp_go_on(hosts, ranks, left) || !numatp_wait_more(ranks, &patience, NUMATP_WATCH_PEERS))
            return false;
    return true;
}

bool numatp_not_sent(struct numatp_ranks *ranks)
{
    numatp_abort(ranks, "a message to another host could not be sent: MPI or memory failed");
    return false;
}

