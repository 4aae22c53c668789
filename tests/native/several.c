/* Stress of several hosts: each is a group of threads with a window of its own, and an MPI that is made here carries messages between
 * them, as late as it likes. Every sum, every row that goes from host to host, and every result is checked.
 *
 *   several HANDLE_BYTES SEATS,SEATS,... THREADS STEPS [abort|silent]
 *
 * abort: a rank of the last host ends the job; silent: nothing comes from the last host any more. Both end all ranks. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "numatp.h"

#ifndef SET_ALARM
#define SET_ALARM() alarm(60) /* seconds without a Step: a hang */
#endif

enum { MOST = 8, EXCHANGES = 4, LENGTH = 96, UNIT = 16, POSTS = 512 };

static int num_hosts, seats_of[MOST], first_of[MOST], size, wires = MOST, threads, handle_bytes;
static int64_t steps;
static bool abort_one, silent_one, cut;
static volatile int wrong;

/* ------------------------------------------------------------------ an MPI */

struct post {
    bool used, send, done;
    int from, to, tag, bytes;
    char *at;
    int64_t order;
};

static struct post posts[POSTS]; /* a request is 1 + its number */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t posted;
static unsigned seed = 1;

static int post(bool send, const void *at, int bytes, int peer, int tag, int self)
{
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < POSTS && posts[i].used)
        i++;
    if (i == POSTS)
        abort();
    posts[i] = (struct post){true, send, false, send ? self : peer, send ? peer : self, tag, bytes, (char *)at, posted++};
    pthread_mutex_unlock(&lock);
    return 1 + i;
}

static struct post *earliest(bool send, const struct post *like)
{
    struct post *found = NULL;
    for (int i = 0; i < POSTS; i++) {
        struct post *p = &posts[i];
        if (p->used && !p->done && p->send == send && p->from == like->from && p->to == like->to && p->tag == like->tag
            && (!found || p->order < found->order))
            found = p;
    }
    return found;
}

static int try(int request, int *flag)
{
    struct post *mine = &posts[request - 1];
    pthread_mutex_lock(&lock);
    struct post *from = earliest(true, mine), *to = earliest(false, mine);
    bool lost = cut && mine->from >= first_of[num_hosts - 1];
    if (from && to && !lost && rand_r(&seed) % 4) {
        if (from->bytes > to->bytes)
            abort();
        memcpy(to->at, from->at, (size_t)from->bytes);
        from->done = to->done = true;
    }
    *flag = mine->done;
    mine->used = !mine->done;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int wide_send(const void *at, int bytes, void *type, int peer, int tag, void *self, intptr_t *request)
{
    return *request = post(true, at, bytes, peer, tag, (int)(intptr_t)self), type == NULL;
}

static int wide_receive(void *at, int bytes, void *type, int peer, int tag, void *self, intptr_t *request)
{
    return *request = post(false, at, bytes, peer, tag, (int)(intptr_t)self), type == NULL;
}

static int wide_test(intptr_t *request, int *flag, void *status)
{
    memset(status, 0xFF, 40);
    return try((int)*request, flag);
}

static int wide_cancel(intptr_t *request)
{
    pthread_mutex_lock(&lock);
    posts[*request - 1].done = true;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int narrow_send(const void *at, int bytes, int type, int peer, int tag, int self, int *request)
{
    return *request = post(true, at, bytes, peer, tag, self), type == 0;
}

static int narrow_receive(void *at, int bytes, int type, int peer, int tag, int self, int *request)
{
    return *request = post(false, at, bytes, peer, tag, self), type == 0;
}

static int narrow_test(int *request, int *flag, void *status)
{
    memset(status, 0xFF, 20);
    return try(*request, flag);
}

static int narrow_cancel(int *request)
{
    return wide_cancel(&(intptr_t){*request});
}

/* ------------------------------------------------------------------ ranks */

/* What the ranks of a host share. */
struct host {
    char *control, *flags;
    int64_t told;
    float partial[MOST][2][LENGTH];
    float sums[2][MOST][MOST][LENGTH]; /* [parity][wire][host] */
    float passed[MOST][LENGTH];        /* by seat: what came from the host before, and goes to the next one */
    int64_t returned[MOST];         /* by seat; on the first host by rank */
};

static struct host *host_at[MOST];

struct rank {
    int host, seat, number;
    struct host *here;
    struct numatp_ranks *ranks;
    struct numatp_team *team;
};

struct exchange {
    struct rank *me;
    int k;
    int64_t rows;
    void *incoming[MOST];
};

static float value(int rank, int64_t step, int k, int64_t i)
{
    return (float)((rank * 31 + step * 7 + k * 3 + i) % 1000);
}

static int edge(int part, int parts) { return LENGTH / UNIT * part / parts * UNIT; }

static void fill(void *args, int64_t thread, int64_t count)
{
    struct exchange *e = args;
    struct rank *me = e->me;
    for (int i = edge((int)thread, (int)count); i < edge((int)thread + 1, (int)count); i++)
        me->here->partial[me->seat][e->k % 2][i] = value(me->number, me->here->told, e->k, i);
}

static void sum_slice(void *args, int64_t thread, int64_t count)
{
    struct exchange *e = args;
    struct rank *me = e->me;
    int first = edge(me->seat, wires), last = edge(me->seat + 1, wires), all = last - first;
    for (int i = first + all * (int)thread / (int)count; i < first + all * ((int)thread + 1) / (int)count; i++) {
        float total = 0;
        for (int seat = 0; seat < seats_of[me->host]; seat++)
            total += me->here->partial[seat][e->k % 2][i];
        me->here->sums[e->k % 2][me->seat][me->host][i - first] = total;
    }
}

static void check(void *args, int64_t thread, int64_t count)
{
    struct exchange *e = args;
    struct host *here = e->me->here;
    for (int i = edge((int)thread, (int)count); i < edge((int)thread + 1, (int)count); i++) {
        float total = 0, wanted = 0;
        for (int wire = 0; wire < wires; wire++)
            if (i >= edge(wire, wires) && i < edge(wire + 1, wires))
                for (int host = 0; host < num_hosts; host++)
                    total += here->sums[e->k % 2][wire][host][i - edge(wire, wires)];
        for (int rank = 0; rank < size; rank++)
            wanted += value(rank, here->told, e->k, i);
        if (total != wanted)
            wrong = 1;
    }
}

/* A row from the hosts before, to which this one adds its own part. */
static void go_on(void *args, int64_t thread, int64_t count)
{
    struct rank *me = args;
    for (int i = edge((int)thread, (int)count); i < edge((int)thread + 1, (int)count); i++) {
        float *row = me->here->passed[me->seat], wanted = 0;
        for (int host = 0; host < me->host; host++)
            wanted += value(first_of[host] + me->seat, me->here->told, EXCHANGES, i);
        if (me->host && row[i] != wanted)
            wrong = 1;
        row[i] = wanted + value(me->number, me->here->told, EXCHANGES, i);
    }
}

static void begin(void *args, int64_t thread, int64_t count)
{
    struct rank *me = args;
    (void)count;
    if (thread || me->number != size - 1)
        return;
    SET_ALARM();
    if (abort_one && me->here->told == steps / 2)
        numatp_abort(me->ranks, "the last rank has had enough");
    if (silent_one && me->here->told == steps / 2) {
        pthread_mutex_lock(&lock);
        cut = true;
        pthread_mutex_unlock(&lock);
    }
}

/* Late, and by the last thread: rank 0 must not read it before. */
static void finish(void *args, int64_t thread, int64_t count)
{
    struct rank *me = args;
    if (thread != count - 1)
        return;
    if (me->here->told % 16 == 0)
        usleep(200);
    me->here->returned[me->seat] = me->here->told * 100 + me->number;
}

static int lead(struct rank *me)
{
    for (int64_t step = 1; step <= steps; step++) {
        me->here->told = step;
        int status = numatp_team_step(me->team, 0);
        if (status != NUMATP_OK)
            return fprintf(stderr, "step %lld: %s\n", (long long)step, numatp_abort_text(me->ranks)), status != NUMATP_ABORTED;
        for (int rank = 0; rank < size; rank++)
            if (me->here->returned[rank] != step * 100 + rank)
                wrong = 1;
        if (wrong) {
            fprintf(stderr, "a wrong result\n");
            numatp_abort(me->ranks, "a wrong result");
            return 1;
        }
        if (step % 61 == 0) /* long enough for the others to nap */
            usleep(15000);
    }
    printf("%lld Steps\n", (long long)steps);
    return numatp_team_stop(me->team) != NUMATP_OK || abort_one || silent_one;
}

static void *run_rank(void *argument)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    static int32_t nowhere[64];
    struct rank *me = argument;
    struct exchange exchanges[EXCHANGES];
    struct numatp_cross_args crossings[EXCHANGES];
    struct numatp_sync_args syncs[2 * EXCHANGES];
    struct numatp_op ops[8 * EXCHANGES + 3];
    struct numatp_piece told[MOST], returned[MOST];
    int num_ops = 0, num_syncs = 0, num_told = 0, num_returned = 0, seats = seats_of[me->host];
    bool wired = me->seat < wires;
    memset(nowhere, 0xFF, sizeof nowhere);
    me->ranks = numatp_ranks_open(me->here->control, me->seat, seats, NULL, 1);
    me->team = numatp_team_open(me->ranks, threads, nowhere, nowhere);
    struct numatp_mpi mpi = {wide_send, wide_receive, wide_test, wide_cancel, 8, (uint64_t)me->number, 7};
    if (handle_bytes == 4)
        mpi = (struct numatp_mpi){narrow_send, narrow_receive, narrow_test, narrow_cancel, 4, (uint64_t)me->number, 7};
    struct numatp_hosts *hosts = numatp_hosts_open(&mpi, me->host, num_hosts, me->seat, first_of, names);
    numatp_ranks_hosts(me->ranks, hosts);
    while (numatp_meet(me->ranks) == NUMATP_PENDING)
        ;
    numatp_ranks_lanes(me->ranks, me->here->flags, threads);
    while (numatp_meet(me->ranks) == NUMATP_PENDING)
        ;
    ops[num_ops++] = (struct numatp_op){begin, me, 0};
    /* The first half of the exchanges one after another, of the others two travel at a time. */
    static const int begins[] = {0, -1, 1, -1, 2, 3, -1, -1}, ends[] = {-1, 0, -1, 1, -1, -1, 2, 3};
    for (int i = 0; i < 2 * EXCHANGES; i++) {
        const int k = begins[i] < 0 ? ends[i] : begins[i];
        const bool beside = k >= EXCHANGES / 2;
        if (k == begins[i]) {
            exchanges[k] = (struct exchange){.me = me, .k = k, .rows = 1};
            ops[num_ops++] = (struct numatp_op){fill, &exchanges[k], 0};
            syncs[num_syncs] = (struct numatp_sync_args){me->team, num_syncs + 1};
            if (seats > 1)
                ops[num_ops++] = (struct numatp_op){numatp_sync, &syncs[num_syncs++], 1};
            if (!wired)
                continue;
            for (int host = 0; host < num_hosts; host++)
                exchanges[k].incoming[host] = me->here->sums[k % 2][me->seat][host];
            crossings[k] = (struct numatp_cross_args){
                me->team, &exchanges[k].rows, (edge(me->seat + 1, wires) - edge(me->seat, wires)) * (int64_t)sizeof(float),
                me->here->sums[k % 2][me->seat][me->host], exchanges[k].incoming, k % 2};
            ops[num_ops++] = (struct numatp_op){sum_slice, &exchanges[k], 1};
            ops[num_ops++] = (struct numatp_op){beside ? numatp_cross_begin : numatp_cross, &crossings[k], 1};
            continue;
        }
        if (wired && beside)
            ops[num_ops++] = (struct numatp_op){numatp_cross_end, &crossings[k], 1};
        syncs[num_syncs] = (struct numatp_sync_args){me->team, num_syncs + 1};
        if (seats > 1)
            ops[num_ops++] = (struct numatp_op){numatp_sync, &syncs[num_syncs++], 1};
        ops[num_ops++] = (struct numatp_op){check, &exchanges[k], 1};
    }
    const int64_t one = 1;
    float *row = me->here->passed[me->seat];
    struct numatp_pass_args take = {me->team, &one, LENGTH * sizeof(float), row, me->host - 1, 1};
    struct numatp_pass_args give = {me->team, &one, LENGTH * sizeof(float), row, me->host + 1, 0};
    if (wired && me->host)
        ops[num_ops++] = (struct numatp_op){numatp_pass, &take, 1};
    if (wired)
        ops[num_ops++] = (struct numatp_op){go_on, me, 1};
    if (wired && me->host < num_hosts - 1)
        ops[num_ops++] = (struct numatp_op){numatp_pass, &give, 1};
    ops[num_ops++] = (struct numatp_op){finish, me, 0};
    int64_t rows[MOST];
    for (int host = 0; host < num_hosts; host++)
        rows[host] = seats_of[host];
    for (int host = 1; host < num_hosts && me->number == 0; host++) {
        told[num_told++] = (struct numatp_piece){(char *)&me->here->told, 8, 8, NULL, host};
        returned[num_returned++] = (struct numatp_piece){(char *)&me->here->returned[first_of[host]], 8, 8, &rows[host], host};
    }
    if (me->host && !me->seat) {
        told[num_told++] = (struct numatp_piece){(char *)&me->here->told, 8, 8, NULL, 0};
        returned[num_returned++] = (struct numatp_piece){(char *)me->here->returned, 8, 8, &rows[me->host], 0};
    }
    struct numatp_program program = {
        .ops = ops, .num_ops = num_ops, .num_syncs = num_syncs, .crossings = wired ? EXCHANGES : 0, .told = {told, num_told},
        .returned = {returned, num_returned}};
    numatp_team_programs(me->team, &program, 1);
    int status = 0;
    int failed = me->number ? (status = numatp_team_serve(me->team)) != (abort_one || silent_one ? NUMATP_ABORTED : NUMATP_STOPPED)
                            : lead(me);
    if (failed)
        fprintf(stderr, "rank %d: status %d %s\n", me->number, status, numatp_abort_text(me->ranks));
    if (abort_one || silent_one)
        usleep(500000); /* others hear of it through us */
    numatp_hosts_quiet(hosts);
    numatp_team_close(me->team);
    return (void *)(intptr_t)(failed || wrong);
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    handle_bytes = atoi(argv[1]);
    for (char *part = strtok(argv[2], ","); part; part = strtok(NULL, ",")) {
        first_of[num_hosts] = size;
        seats_of[num_hosts] = atoi(part);
        size += atoi(part);
        wires = atoi(part) < wires ? atoi(part) : wires;
        num_hosts++;
    }
    threads = atoi(argv[3]);
    steps = atoll(argv[4]);
    abort_one = argc > 5 && !strcmp(argv[5], "abort");
    silent_one = argc > 5 && !strcmp(argv[5], "silent");
    SET_ALARM();
    struct rank ranks[MOST];
    for (int host = 0; host < num_hosts; host++) {
        struct host *made = calloc(1, sizeof *made);
        size_t control = (size_t)numatp_control_bytes(seats_of[host]), flags = (size_t)numatp_flag_bytes(seats_of[host], threads);
        made->control = mmap(NULL, control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        made->flags = mmap(NULL, flags, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        host_at[host] = made;
        for (int seat = 0; seat < seats_of[host]; seat++)
            ranks[first_of[host] + seat] = (struct rank){.host = host, .seat = seat, .number = first_of[host] + seat, .here = made};
    }
    pthread_t others[MOST];
    for (int rank = 1; rank < size; rank++)
        pthread_create(&others[rank], NULL, run_rank, &ranks[rank]);
    bool failed = run_rank(&ranks[0]) != NULL;
    for (int rank = 1; rank < size; rank++) {
        void *other;
        pthread_join(others[rank], &other);
        failed |= other != NULL;
    }
    return failed;
}
