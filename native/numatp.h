/* The C runtime of numatp: what has to be exact about threads and memory order, and nothing that computes.
 *
 * A *rank* is one process on one NUMA node. Ranks of one host share one mapping, the *window*, and their numbers here are their
 * seats on that host. Inside a rank a *team* of pinned threads executes a *program*: a flat list of ops, each a compiled kernel
 * and the address of its arguments.
 * Kernels come from Numba, by address; this library never looks inside their arguments.
 *
 * Functions that return int return a numatp_status. All waits end when the job is aborted or a rank dies.
 */
#ifndef NUMATP_H
#define NUMATP_H

#include <stdint.h>

#pragma GCC visibility push(default) /* everything else in the library is hidden */

#define NUMATP_LINE 128          /* bytes: two cache lines, because the adjacent-line prefetcher pairs them */
#define NUMATP_NOTE_BYTES 3072   /* what one rank can tell the others in one numatp_meet */
#define NUMATP_ABORT_BYTES 512   /* text of the message that ends a job, with its final 0 */
#define NUMATP_MAX_RANKS 64

enum numatp_status {
    NUMATP_OK = 0,
    NUMATP_ABORTED = 1,  /* see numatp_abort_rank and numatp_abort_text */
    NUMATP_PENDING = 2,  /* not all ranks have come yet: do what you must (signals, children), then call again */
    NUMATP_STOPPED = 3,  /* rank 0 ended the service */
    NUMATP_FORKED = 4,   /* called in a child of the process that made the object */
    NUMATP_SYSTEM = 5,   /* a system call failed: errno */
};

/* ------------------------------------------------------------------ programs */

/* Thread `thread` of `threads` does its part of one op. Must not block, raise or allocate. */
typedef void (*numatp_kernel)(void *args, int64_t thread, int64_t threads);

struct numatp_op {
    numatp_kernel run;
    void *args;
    int64_t barrier; /* not 0: the barrier of the rank's threads comes before this op */
};

/* Memory that goes to or comes from another host around a Step: *rows rows (one where `rows` is NULL), `stride` bytes apart. */
struct numatp_piece {
    char *at;
    int64_t row_bytes;
    int64_t stride;
    const int64_t *rows;
    int64_t host;
};

struct numatp_pieces {
    const struct numatp_piece *piece; /* [count] */
    int64_t count;
};

struct numatp_program {
    const struct numatp_op *ops;
    int64_t num_ops;
    int64_t num_syncs;           /* how many of them are numatp_sync: the same number on every rank of a host */
    struct numatp_times *times;  /* NULL, or [threads][num_ops + 1], to which every run adds; the last is the end's barrier */
    int64_t crossings;           /* how many are numatp_cross: the same number on every rank that has some */
    struct numatp_pieces told;     /* by rank 0 to the other hosts' seat 0, before the Step; in the same order on both */
    struct numatp_pieces returned; /* and by them to rank 0, after it */
    int64_t own_time;              /* 1: times are the thread's own cpu time, whoever else has its cpu meanwhile */
};

/* Nanoseconds of one thread. */
struct numatp_times {
    int64_t waited; /* in the barrier before the op */
    int64_t ran;    /* in the op */
};

/* ------------------------------------------------------------------ ranks: who else is there */

struct numatp_ranks;

/* Bytes of the window's control section for `size` ranks; a multiple of the page size. Zero-filled memory is a valid
 * start state, so the creator only has to make the file that long. */
int64_t numatp_control_bytes(int size);

/* Joins the job. `control` is this process's mapping of the control section. pids[r] is the process id of rank r where
 * it is known and 0 where it is not (it is then learned at the first numatp_meet). `crowded` is not 0 when the job has more
 * threads than cores: then nothing spins, every wait yields at once. NULL with errno on failure. */
struct numatp_ranks *numatp_ranks_open(void *control, int rank, int size, const int32_t *pids, int crowded);
void numatp_ranks_crowded(struct numatp_ranks *, int crowded); /* changes that, before there is a team */
void numatp_ranks_close(struct numatp_ranks *);

/* The ranks meet, for setting up and never inside a Step, because it sleeps between looks: NUMATP_OK once every rank has called
 * it as often as this one, NUMATP_PENDING after about 50 ms without that (then call again: a repeated call counts once). */
int numatp_meet(struct numatp_ranks *);

/* Where rank r leaves what it wants to tell the others: NUMATP_NOTE_BYTES bytes in the window. Write your own, meet,
 * read the others', meet again. */
char *numatp_note(struct numatp_ranks *, int rank);

/* Ends the job on every rank; the first caller's text is kept. Any thread may call it. */
void numatp_abort(struct numatp_ranks *, const char *text);
int numatp_abort_rank(struct numatp_ranks *);          /* rank that ended the job, -1 while it runs */
const char *numatp_abort_text(struct numatp_ranks *);  /* "" while it runs */
int numatp_abort_witness(struct numatp_ranks *);       /* rank 0 has died, and of the others this one is to say so */

/* The lanes: `flags` is this process's mapping of numatp_flag_bytes(size, lanes) zero-filled bytes of the window.
 * `lanes` is the smallest thread count of any rank. Before the first program with a sync. */
int64_t numatp_flag_bytes(int size, int lanes);
void numatp_ranks_lanes(struct numatp_ranks *, void *flags, int lanes);

/* ------------------------------------------------------------------ team: the threads of this rank */

struct numatp_team;

/* Makes the calling thread thread 0 and starts threads - 1 more, each pinned to cpus[i] (not pinned where cpus[i] < 0).
 * groups[i] names the L3 cache of thread i: above 8 threads the barrier is a tree, within groups and between them.
 * The workers block all signals. NULL with errno on failure. */
struct numatp_team *numatp_team_open(struct numatp_ranks *, int threads, const int32_t *cpus, const int32_t *groups);
void numatp_team_close(struct numatp_team *); /* joins the workers; also safe after an abort and in a forked child */

/* Runs a program on this rank alone (it holds no sync). Called by thread 0, as is all that follows. */
int numatp_team_run(struct numatp_team *, const struct numatp_program *);

/* The programs that a Step can name by index, the same sequence on every rank. The array stays the caller's. */
void numatp_team_programs(struct numatp_team *, const struct numatp_program *programs, int64_t num_programs);

/* One Step, rank 0: publishes it (what the ranks read of it was written to the window before), runs the program here,
 * and returns when every rank has finished it: then all results in the window may be read and the next Step written. */
int numatp_team_step(struct numatp_team *, int64_t program);

/* Ranks > 0: run Steps as rank 0 publishes them. Returns NUMATP_STOPPED after rank 0's numatp_team_stop. Waits by spinning
 * for about 10 ms after a Step, then sleeps in the kernel. */
int numatp_team_serve(struct numatp_team *);
int numatp_team_stop(struct numatp_team *); /* rank 0: ends the service on the other ranks */

/* ------------------------------------------------------------------ sync: lane i of every rank waits for lane i of the others */

/* An op's kernel. Thread i < lanes publishes lane i of this rank and waits until lane i of every rank is published:
 * what the same thread wrote before it on any rank can then be read. Threads >= lanes skip. */
struct numatp_sync_args {
    struct numatp_team *team;
    int64_t ordinal; /* 1, 2, ... among the syncs of the program */
};
void numatp_sync(void *args, int64_t thread, int64_t threads);

/* ------------------------------------------------------------------ handing on: a thread goes on with what the one before began */

/* Ops' kernels. What a thread wrote before numatp_hand_on can be read by the next thread of its team after its numatp_take_over. The
 * team's threads all run the same ops, in which they take turns: a thread waits for as many of the one as it has itself come to.
 * A thread waits for none behind it, so there is no circle. What was handed on is not written again before a barrier. */
struct numatp_hand_args {
    struct numatp_team *team;
    const int64_t *waits; /* [threads], of numatp_take_over: not 0 for threads that go on with something */
};
void numatp_hand_on(void *args, int64_t thread, int64_t threads);
void numatp_take_over(void *args, int64_t thread, int64_t threads);

/* ------------------------------------------------------------------ other hosts, through MPI */

/* MPI's functions by address and its handles as they are: an MPI_Request, a communicator... is an int or a pointer.
 * The communicator's errors return. */
struct numatp_mpi {
    void *isend, *irecv, *test, *cancel;
    int64_t handle_bytes;
    uint64_t communicator, byte; /* handles: of our own communicator, of MPI_BYTE */
};

struct numatp_hosts;

/* This process as the rank at seat `seat` of host `host` of `num_hosts`. leaders: by host, the rank at seat 0, which speaks for it;
 * ranks are numbers in the communicator, and those of a host follow each other. From now on the leaders send each other signs of
 * life; a host that is silent for seconds ends the job. A process whose job has ended, and that does not ask for numatp_abort_text
 * within three seconds, ends with the text on stderr. NULL with errno on failure. */
struct numatp_hosts *numatp_hosts_open(const struct numatp_mpi *, int host, int num_hosts, int seat, const int32_t *leaders,
                                       const char *const *names);
void numatp_hosts_quiet(struct numatp_hosts *); /* no MPI is called any more: before MPI ends */

/* These ranks, the seats of one host, are part of a job that runs on all hosts: an abort ends it on all. One job at a time. */
void numatp_ranks_hosts(struct numatp_ranks *, struct numatp_hosts *);
void numatp_hosts_leave(struct numatp_ranks *); /* before their window goes: nobody looks at it any more when this returns */

/* Leaders only, for setting up: sends `mine` to each other leader; what host h sent is then at theirs + h * room, room bytes at
 * most. NUMATP_PENDING after about 50 ms: call again with the same. After NUMATP_ABORTED the memory of both must stay. */
int numatp_hosts_swap(struct numatp_ranks *, const void *mine, int64_t mine_bytes, void *theirs, int64_t room);

/* An op's kernel. Thread 0 sends `outgoing` to our counterparts and receives theirs, *rows rows of row_bytes from each. The program
 * has barriers before and after it. */
struct numatp_cross_args {
    struct numatp_team *team;
    const int64_t *rows;
    int64_t row_bytes;
    const void *outgoing;
    void *const *incoming; /* by host */
    int64_t half;          /* of numatp_cross_begin and _end: 0 or 1, which sum it is of the two that may be under way */
};
void numatp_cross(void *args, int64_t thread, int64_t threads);

/* The same as two ops: what comes between them is computed while the sum travels, and leaves what is sent and what comes in alone.
 * Both have a barrier before them, the second one also behind it. */
void numatp_cross_begin(void *args, int64_t thread, int64_t threads);
void numatp_cross_end(void *args, int64_t thread, int64_t threads);

/* An op's kernel, where hosts hold layers one after another. Thread 0 sends *rows rows of row_bytes to the rank at our seat of another
 * host, or takes them from it. The program has barriers before and after it. */
struct numatp_pass_args {
    struct numatp_team *team;
    const int64_t *rows;
    int64_t row_bytes;
    void *at;
    int64_t host;
    int64_t take; /* not 0: from there */
};
void numatp_pass(void *args, int64_t thread, int64_t threads);

/* ------------------------------------------------------------------ pages */

/* Anonymous memory of `bytes` at a multiple of 2 MiB, huge pages advised, not touched. NULL with errno on failure. */
void *numatp_pages_reserve(int64_t bytes);
void numatp_pages_release(void *, int64_t bytes);

/* Binds memory of numatp_pages_reserve to a node: file pages there give way to it, and the kernel never moves it.
 * NUMATP_SYSTEM where the kernel refuses: then first touch decides. */
int numatp_pages_bind(void *, int64_t bytes, int node);

/* Asks the kernel (move_pages) where the pages of [start, start + bytes) are: nodes[n] += pages on node n for n < num_nodes,
 * *absent += pages not touched yet. NUMATP_SYSTEM where the call is refused. */
int numatp_pages_nodes(const void *start, int64_t bytes, int64_t *nodes, int num_nodes, int64_t *absent);

/* The page size that numatp_pages_nodes counts in, bytes. */
int64_t numatp_page_bytes(void);

#pragma GCC visibility pop

#endif
