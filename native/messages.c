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
        struct message *messages = realloc(flight->messages, (size_t)room * sizeof *messages);
        if (!messages)
            return false;
        flight->messages = messages;
        flight->room = room;
    }
    struct message *message = &flight->messages[flight->count];
    message->peer = peer;
    pthread_mutex_lock(&hosts->turn);
    int error = start(hosts, function, at, bytes, peer, tag, &message->request);
    pthread_mutex_unlock(&hosts->turn);
    if (error)
        atomic_store_explicit(&hosts->lost, 1 + peer, memory_order_relaxed);
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
        struct message *message = &flight->messages[i];
        int done = 0;
        pthread_mutex_lock(&hosts->turn);
        int error = ((test *)hosts->mpi.test)(&message->request, &done, status);
        pthread_mutex_unlock(&hosts->turn);
        if (error) {
            atomic_store_explicit(&hosts->lost, 1 + message->peer, memory_order_relaxed);
            break;
        }
        if (done)
            *message = flight->messages[--flight->count];
        else
            i++;
    }
    return flight->count;
}

void numatp_cancel(struct numatp_hosts *hosts, struct flight *flight)
{
    for (int i = 0; i < flight->count; i++)
        ((cancel *)hosts->mpi.cancel)(&flight->messages[i].request);
    numatp_look_out(hosts, flight);
}

static int host_of(const struct numatp_hosts *hosts, int rank)
{
    int host = hosts->hosts - 1;
    while (rank < hosts->leader[host])
        host--;
    return host;
}

bool numatp_hosts_ended(struct numatp_hosts *hosts, struct numatp_ranks *ranks)
{
    const int silent = atomic_load_explicit(&hosts->silent, memory_order_relaxed) - 1;
    const int lost = atomic_load_explicit(&hosts->lost, memory_order_relaxed) - 1;
    char text[NUMATP_ABORT_BYTES];
    if (lost >= 0)
        snprintf(text, sizeof text, "rank %d on host %s has ended, or the link to it is down", lost, hosts->name[host_of(hosts, lost)]);
    else if (silent >= 0)
        snprintf(text, sizeof text, "nothing has come from rank %d on host %s for %d s: it, its host or the link to it is down",
                 hosts->leader[silent], hosts->name[silent], (int)(NUMATP_SILENCE_NS / 1000000000));
    else
        return false;
    numatp_abort(ranks, text);
    return true;
}

bool numatp_land(struct numatp_hosts *hosts, struct numatp_ranks *ranks, struct flight *flight)
{
    struct numatp_patience patience = {0};
    while (numatp_look_out(hosts, flight))
        if (numatp_hosts_ended(hosts, ranks) || !numatp_wait_more(ranks, &patience, NUMATP_WATCH_PEERS))
            return false;
    return true;
}

bool numatp_not_sent(struct numatp_hosts *hosts, struct numatp_ranks *ranks)
{
    if (!numatp_hosts_ended(hosts, ranks))
        numatp_abort(ranks, "no memory for a message to another host");
    return false;
}
