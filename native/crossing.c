/* Work on several hosts: Steps that are told to them and what comes back, the sums that their ranks exchange, and the rows that they
 * pass on. */
#include "hosts.h"

#define IDLE_NAP_NS 1000000 /* between two looks for the next Step, once none has come for a while */
#define CARRY_NAP_NS 30000  /* between two calls for a sum that travels: its core is one that computes; 40 KB on 10 Gbit/s */

/* ------------------------------------------------------------------ Steps */

typedef bool carry(struct numatp_hosts *, struct flight *, void *, int64_t, int, int);

static bool send_piece(struct numatp_hosts *hosts, struct flight *flight, void *at, int64_t bytes, int peer, int tag)
{
    return numatp_send(hosts, flight, at, bytes, peer, tag);
}

/* All rows of each piece: in one message if they follow each other, else in one each. */
static bool move(struct numatp_hosts *hosts, struct numatp_ranks *ranks, const struct numatp_pieces *pieces, carry *how, int tag)
{
    for (int64_t i = 0; i < pieces->count; i++) {
        const struct numatp_piece *piece = &pieces->piece[i];
        int64_t rows = piece->rows ? *piece->rows : 1, bytes = piece->row_bytes;
        if (bytes == piece->stride) {
            bytes *= rows;
            rows = rows > 0;
        }
        for (int64_t row = 0; bytes && row < rows; row++)
            if (!how(hosts, &hosts->step, piece->at + row * piece->stride, bytes, hosts->leader[piece->host], tag))
                return numatp_not_sent(hosts, ranks);
    }
    return true;
}

bool numatp_hosts_announce(struct numatp_ranks *ranks, int64_t index, const struct numatp_program *program)
{
    struct numatp_hosts *hosts = ranks->hosts;
    hosts->header = (struct numatp_step_header){index, program ? program->crossings : 0};
    for (int other = 1; other < hosts->hosts; other++)
        if (!numatp_send(hosts, &hosts->step, &hosts->header, sizeof hosts->header, hosts->leader[other], TAG_STEP))
            return numatp_not_sent(hosts, ranks);
    if (!program)
        return numatp_land(hosts, ranks, &hosts->step);
    if (!move(hosts, ranks, &program->told, send_piece, TAG_TOLD) || !move(hosts, ranks, &program->returned, numatp_receive, TAG_RETURNED))
        return false;
    for (int other = 1; other < hosts->hosts; other++)
        if (!numatp_receive(hosts, &hosts->step, &hosts->answered[other], sizeof(int64_t), hosts->leader[other], TAG_RETURNED))
            return numatp_not_sent(hosts, ranks);
    return true;
}

bool numatp_hosts_collect(struct numatp_ranks *ranks)
{
    return numatp_land(ranks->hosts, ranks, &ranks->hosts->step);
}

bool numatp_hosts_next(struct numatp_ranks *ranks, struct numatp_step_header *header)
{
    struct numatp_hosts *hosts = ranks->hosts;
    struct numatp_patience patience = {0};
    if (!numatp_receive(hosts, &hosts->step, header, sizeof *header, hosts->leader[0], TAG_STEP))
        return numatp_not_sent(hosts, ranks);
    while (numatp_look_out(hosts, &hosts->step)) {
        if (patience.waited > NUMATP_AWAKE_NS) {
            patience.waited = numatp_clock() - patience.since;
            numatp_sleep(IDLE_NAP_NS);
        }
        if (numatp_hosts_ended(hosts, ranks) || numatp_aborted(ranks) || !numatp_wait_more(ranks, &patience, NUMATP_WATCH_PEERS))
            return false;
    }
    return true;
}

bool numatp_hosts_hear(struct numatp_ranks *ranks, const struct numatp_program *program)
{
    return move(ranks->hosts, ranks, &program->told, numatp_receive, TAG_TOLD) && numatp_land(ranks->hosts, ranks, &ranks->hosts->step);
}

bool numatp_hosts_answer(struct numatp_ranks *ranks, const struct numatp_program *program)
{
    struct numatp_hosts *hosts = ranks->hosts;
    hosts->answered[0] = ranks->step;
    if (!move(hosts, ranks, &program->returned, send_piece, TAG_RETURNED))
        return false;
    if (!numatp_send(hosts, &hosts->step, &hosts->answered[0], sizeof(int64_t), hosts->leader[0], TAG_RETURNED))
        return numatp_not_sent(hosts, ranks);
    return numatp_land(hosts, ranks, &hosts->step);
}

/* ------------------------------------------------------------------ sums */

static bool launch_sums(struct numatp_hosts *hosts, struct numatp_ranks *ranks, struct flight *flight, const struct numatp_cross_args *args)
{
    const int64_t bytes = *args->rows * args->row_bytes;
    for (int other = 0; other < hosts->hosts; other++)
        if (other != hosts->host
            && !numatp_receive(hosts, flight, args->incoming[other], bytes, hosts->leader[other] + hosts->seat, TAG_SUMS))
            return numatp_not_sent(hosts, ranks);
    for (int other = 0; other < hosts->hosts; other++)
        if (other != hosts->host
            && !numatp_send(hosts, flight, args->outgoing, bytes, hosts->leader[other] + hosts->seat, TAG_SUMS))
            return numatp_not_sent(hosts, ranks);
    return true;
}

void numatp_cross(void *argument, int64_t thread, int64_t threads)
{
    const struct numatp_cross_args *args = argument;
    struct numatp_ranks *ranks = numatp_team_ranks(args->team);
    struct numatp_hosts *hosts = ranks->hosts;
    (void)threads;
    if (!thread && launch_sums(hosts, ranks, &hosts->sums, args))
        numatp_land(hosts, ranks, &hosts->sums); /* the executor looks at the abort word before the next op */
}

/* ------------------------------------------------------------------ sums that travel while the team computes */

void *numatp_carry(void *argument)
{
    struct numatp_hosts *hosts = argument;
    pthread_mutex_lock(&hosts->carrying);
    while (!atomic_load_explicit(&hosts->stop, memory_order_relaxed)) {
        if (!(numatp_look_out(hosts, &hosts->halves[0]) + numatp_look_out(hosts, &hosts->halves[1]))) {
            pthread_cond_wait(&hosts->begun, &hosts->carrying);
            continue;
        }
        pthread_mutex_unlock(&hosts->carrying);
        numatp_sleep(CARRY_NAP_NS);
        pthread_mutex_lock(&hosts->carrying);
    }
    pthread_mutex_unlock(&hosts->carrying);
    return NULL;
}

void numatp_cross_begin(void *argument, int64_t thread, int64_t threads)
{
    const struct numatp_cross_args *args = argument;
    struct numatp_ranks *ranks = numatp_team_ranks(args->team);
    struct numatp_hosts *hosts = ranks->hosts;
    (void)threads;
    if (thread)
        return;
    pthread_mutex_lock(&hosts->carrying);
    launch_sums(hosts, ranks, &hosts->halves[args->half], args);
    pthread_cond_signal(&hosts->begun);
    pthread_mutex_unlock(&hosts->carrying);
}

void numatp_cross_end(void *argument, int64_t thread, int64_t threads)
{
    const struct numatp_cross_args *args = argument;
    struct numatp_ranks *ranks = numatp_team_ranks(args->team);
    struct numatp_hosts *hosts = ranks->hosts;
    struct numatp_patience patience = {0};
    (void)threads;
    for (int left = !thread; left;) {
        pthread_mutex_lock(&hosts->carrying);
        left = numatp_look_out(hosts, &hosts->halves[args->half]);
        pthread_mutex_unlock(&hosts->carrying);
        if (left && (numatp_hosts_ended(hosts, ranks) || !numatp_wait_more(ranks, &patience, NUMATP_WATCH_PEERS)))
            return;
    }
}

/* ------------------------------------------------------------------ rows between the layers of two hosts */

void numatp_pass(void *argument, int64_t thread, int64_t threads)
{
    const struct numatp_pass_args *args = argument;
    struct numatp_ranks *ranks = numatp_team_ranks(args->team);
    struct numatp_hosts *hosts = ranks->hosts;
    (void)threads;
    if (thread)
        return;
    carry *how = args->take ? numatp_receive : send_piece;
    if (how(hosts, &hosts->sums, args->at, *args->rows * args->row_bytes, hosts->leader[args->host] + hosts->seat, TAG_PASSED))
        numatp_land(hosts, ranks, &hosts->sums);
    else
        numatp_not_sent(hosts, ranks);
}
