/* The ranks of a job: how they meet before there is work, how one ends the job for all, how the death of one is noticed. */
#include "hosts.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MEET_NS 50000000        /* a meeting that is not complete returns to the caller this often */
#define MEET_NAP_MAX_NS 2000000 /* sleep between two looks, growing up to this */

_Static_assert(sizeof(struct numatp_rank_page) == NUMATP_CONTROL_PAGE, "a rank's page is one page");

int64_t numatp_control_bytes(int size)
{
    return numatp_round_up(sizeof(struct numatp_control) + (int64_t)size * NUMATP_CONTROL_PAGE, numatp_page_bytes());
}

bool numatp_forked(const struct numatp_ranks *ranks)
{
    return getpid() != ranks->pid;
}

/* ------------------------------------------------------------------ life and death of the others */

/* Opens a pidfd for every rank whose process has become known. Only the thread that opened the ranks calls this. */
static void learn_peers(struct numatp_ranks *ranks)
{
    for (int r = 0; r < ranks->size; r++) {
        struct numatp_peer *peer = &ranks->peer[r];
        if (peer->watched)
            continue;
        if (!peer->pid)
            peer->pid = atomic_load_explicit(&ranks->control->rank[r].pid, memory_order_relaxed);
        if (!peer->pid || peer->pid == ranks->pid)
            continue;
        peer->pidfd = (int)syscall(SYS_pidfd_open, peer->pid, 0);
        peer->watched = true;
    }
}

/* For kernels and containers without pidfd_open. A zombie still takes signals, so its state has to be read. */
static bool process_dead(int32_t pid)
{
    if (kill(pid, 0) < 0)
        return errno == ESRCH;
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t bytes = read(file, text, sizeof text - 1);
    close(file);
    text[bytes > 0 ? bytes : 0] = 0;
    const char *state = strrchr(text, ')'); /* "pid (name) state ...": the name can hold anything */
    return state && state[1] && (state[2] == 'Z' || state[2] == 'X');
}

int numatp_dead_peer(const struct numatp_ranks *ranks)
{
    struct pollfd ends[NUMATP_MAX_RANKS];
    for (int r = 0; r < ranks->size; r++)
        ends[r] = (struct pollfd){.fd = ranks->peer[r].pidfd, .events = POLLIN};
    poll(ends, (nfds_t)ranks->size, 0);
    for (int r = 0; r < ranks->size; r++) {
        const struct numatp_peer *peer = &ranks->peer[r];
        if (peer->watched && (peer->pidfd >= 0 ? ends[r].revents != 0 : process_dead(peer->pid)))
            return 1 + r;
    }
    return 0;
}

void numatp_abort_dead(struct numatp_ranks *ranks, int dead)
{
    char text[NUMATP_ABORT_BYTES];
    snprintf(text, sizeof text, "rank %d (process %d) died", ranks->first + dead - 1, ranks->peer[dead - 1].pid);
    numatp_abort(ranks, text);
}

/* ------------------------------------------------------------------ open, close, meet */

struct numatp_ranks *numatp_ranks_open(void *control, int rank, int size, const int32_t *pids, int crowded)
{
    if (!control || (uintptr_t)control % NUMATP_LINE || size < 1 || size > NUMATP_MAX_RANKS || rank < 0 || rank >= size) {
        errno = EINVAL;
        return NULL;
    }
    struct numatp_ranks *ranks = calloc(1, sizeof *ranks);
    if (!ranks)
        return NULL;
    ranks->control = control;
    ranks->rank = rank;
    ranks->size = size;
    ranks->crowded = crowded != 0;
    ranks->pid = getpid();
    for (int r = 0; r < size; r++)
        ranks->peer[r] = (struct numatp_peer){.pid = pids && r != rank ? pids[r] : 0, .pidfd = -1};
    atomic_store_explicit(&ranks->control->rank[rank].pid, ranks->pid, memory_order_relaxed);
    learn_peers(ranks);
    return ranks;
}

void numatp_ranks_crowded(struct numatp_ranks *ranks, int crowded)
{
    ranks->crowded = crowded != 0;
}

void numatp_ranks_close(struct numatp_ranks *ranks)
{
    if (!ranks)
        return;
    numatp_hosts_leave(ranks);
    for (int r = 0; r < ranks->size; r++)
        if (ranks->peer[r].pidfd >= 0)
            close(ranks->peer[r].pidfd);
    free(ranks);
}

static bool all_have_come(const struct numatp_ranks *ranks, int64_t meeting)
{
    for (int r = 0; r < ranks->size; r++)
        if (atomic_load_explicit(&ranks->control->rank[r].meetings, memory_order_acquire) < meeting)
            return false;
    return true;
}

int numatp_meet(struct numatp_ranks *ranks)
{
    if (numatp_forked(ranks))
        return NUMATP_FORKED;
    _Atomic int64_t *mine = &ranks->control->rank[ranks->rank].meetings;
    int64_t meeting = atomic_load_explicit(mine, memory_order_relaxed) + (ranks->meeting ? 0 : 1);
    atomic_store_explicit(mine, meeting, memory_order_release);
    ranks->meeting = true;

    int64_t nap = 20000, end = numatp_clock() + MEET_NS;
    for (int dead = 0;;) {
        bool aborted = numatp_abort_rank(ranks) >= 0; /* before the look at who has come: a meeting that all reached counts */
        if (all_have_come(ranks, meeting)) {
            ranks->meeting = false;
            learn_peers(ranks);
            return NUMATP_OK;
        }
        if (aborted)
            return NUMATP_ABORTED;
        if (dead) { /* and it had not come before it died */
            numatp_abort_dead(ranks, dead);
            return NUMATP_ABORTED;
        }
        if (numatp_clock() > end)
            return NUMATP_PENDING;
        learn_peers(ranks);
        dead = numatp_dead_peer(ranks);
        if (!dead)
            numatp_sleep(nap);
        nap = nap * 2 < MEET_NAP_MAX_NS ? nap * 2 : MEET_NAP_MAX_NS;
    }
}

char *numatp_note(struct numatp_ranks *ranks, int rank)
{
    return rank >= 0 && rank < ranks->size ? ranks->control->rank[rank].note : NULL;
}

/* ------------------------------------------------------------------ abort */

/* Every rank has its own text, so that only the word decides who was first: no rank can die halfway and block the others. */
void numatp_abort(struct numatp_ranks *ranks, const char *text)
{
    struct numatp_control *control = ranks->control;
    if (numatp_forked(ranks))
        return;
    if (atomic_exchange_explicit(&ranks->abort_text, true, memory_order_relaxed)) {
        while (!numatp_aborted(ranks)) /* another thread of this rank is just writing its text */
            numatp_sleep(1000);
        return;
    }
    char *mine = control->rank[ranks->rank].abort_text;
    strncpy(mine, text, NUMATP_ABORT_BYTES - 1);
    int32_t nobody = 0;
    NUMATP_TEST_DELAY();
    atomic_compare_exchange_strong_explicit(&control->aborted_by, &nobody, 1 + ranks->rank, memory_order_release,
                                            memory_order_relaxed);
    numatp_gate_ring(&control->steps, true);
}

int numatp_abort_rank(struct numatp_ranks *ranks)
{
    return atomic_load_explicit(&ranks->control->aborted_by, memory_order_acquire) - 1;
}

const char *numatp_abort_reason(struct numatp_ranks *ranks)
{
    int rank = numatp_abort_rank(ranks);
    return rank < 0 ? "" : ranks->control->rank[rank].abort_text;
}

const char *numatp_abort_text(struct numatp_ranks *ranks)
{
    atomic_store_explicit(&ranks->asked_why, numatp_aborted(ranks), memory_order_relaxed);
    return numatp_abort_reason(ranks);
}

int numatp_abort_witness(struct numatp_ranks *ranks)
{
    return numatp_abort_rank(ranks) == ranks->rank && !strncmp(numatp_abort_reason(ranks), "rank 0 ", 7);
}
