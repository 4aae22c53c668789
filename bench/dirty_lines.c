/* What two cores need at least to read what the other has just written: the floor under any exchange in shared memory.
 *
 * cc -O2 -march=native -pthread bench/dirty_lines.c -o dirty_lines && ./dirty_lines [CPU CPU]
 *
 * Each of two pinned threads writes N bytes, publishes, waits for the other, and reads the other's N bytes; two buffers in turns, as
 * in the engine. Written plainly, with cldemote (asks for the lines to move to the L3), and past the caches. us per round, best of 5.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST (1 << 17)
#define ROUNDS 20000

enum way { PLAIN, DEMOTED, PAST, WAYS };
static const char *names[] = {"plain", "cldemote", "past the caches"};

static _Alignas(4096) char buffers[2][2][MOST];
static _Alignas(128) _Atomic int64_t flags[2][16];
static int cpus[2] = {0, 1};
static size_t bytes;
static enum way way;
static double seconds[2];
static uint64_t sink[2];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *run(void *argument)
{
    const int me = (int)(intptr_t)argument;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus[me], &set);
    sched_setaffinity(0, sizeof set, &set);
    const int64_t base = atomic_load(&flags[me][0]);
    double start = 0;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t round = 1; round <= ROUNDS + 100; round++) {
        if (round == 101)
            start = now();
        char *mine = buffers[me][round % 2], *other = buffers[1 - me][round % 2];
        const __m512i value = _mm512_set1_epi64(round);
        for (size_t i = 0; i < bytes; i += 64) {
            if (way == PAST)
                _mm512_stream_si512((__m512i *)(mine + i), value);
            else
                _mm512_store_si512(mine + i, value);
        }
        if (way == DEMOTED)
            for (size_t i = 0; i < bytes; i += 64)
                __asm__ volatile("cldemote (%0)" ::"r"(mine + i)); /* a no-op where it is not known */
        if (way == PAST)
            _mm_sfence();
        atomic_store_explicit(&flags[me][0], base + round, memory_order_release);
        while (atomic_load_explicit(&flags[1 - me][0], memory_order_acquire) < base + round)
            _mm_pause();
        for (size_t i = 0; i < bytes; i += 64)
            sum = _mm512_add_epi64(sum, _mm512_load_si512(other + i));
    }
    seconds[me] = now() - start;
    sink[me] = (uint64_t)_mm512_reduce_add_epi64(sum);
    return NULL;
}

int main(int count, char **words)
{
    for (int i = 0; i < 2 && i + 1 < count; i++)
        cpus[i] = atoi(words[i + 1]);
    for (bytes = 64; bytes <= MOST; bytes = bytes == 64 ? 2048 : bytes * 4) {
        printf("%7zu bytes:", bytes);
        for (way = PLAIN; way < WAYS; way++) {
            double best = 1e9;
            for (int again = 0; again < 5; again++) {
                pthread_t other;
                pthread_create(&other, NULL, run, (void *)1);
                run((void *)0);
                pthread_join(other, NULL);
                best = seconds[0] < best ? seconds[0] : best;
            }
            printf("  %s %.2f us", names[way], best / ROUNDS * 1e6);
        }
        printf("\n");
    }
    return sink[0] == 1;
}
