/* Memory for weights and caches: big aligned mappings, and the question where their pages are. */
#include "internal.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HUGE_BYTES (INT64_C(2) << 20)
#define PAGES_PER_CALL 1024
#define MOST_NODES 1024 /* more than any kernel is built for */
#define LONG_BITS (8 * (int)sizeof(unsigned long))

int64_t numatp_page_bytes(void)
{
    return sysconf(_SC_PAGESIZE);
}

void *numatp_pages_reserve(int64_t bytes)
{
    if (bytes <= 0) {
        errno = EINVAL;
        return NULL;
    }
    /* mmap aligns to small pages only: map one huge page more and cut off what sticks out on both sides. */
    int64_t length = numatp_round_up(bytes, HUGE_BYTES);
    /* Addresses alone: whether there is room is asked before they are touched, of the node and not of the whole machine. */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *map = mmap(NULL, (size_t)(length + HUGE_BYTES), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    int64_t before = numatp_round_up((intptr_t)map, HUGE_BYTES) - (intptr_t)map;
    if (before)
        munmap(map, (size_t)before);
    if (HUGE_BYTES - before)
        munmap(map + before + length, (size_t)(HUGE_BYTES - before));
    madvise(map + before, (size_t)length, MADV_HUGEPAGE); /* refused where the kernel has none: slower, not wrong */
    return map + before;
}

void numatp_pages_release(void *start, int64_t bytes)
{
    if (start)
        munmap(start, (size_t)numatp_round_up(bytes, HUGE_BYTES));
}

int numatp_pages_bind(void *start, int64_t bytes, int node)
{
    unsigned long nodes[MOST_NODES / LONG_BITS] = {0};
    if (node < 0 || node >= MOST_NODES) {
        errno = EINVAL;
        return NUMATP_SYSTEM;
    }
    nodes[node / LONG_BITS] = 1UL << node % LONG_BITS;
    unsigned long length = (unsigned long)numatp_round_up(bytes, HUGE_BYTES);
    return syscall(SYS_mbind, start, length, MPOL_BIND, nodes, MOST_NODES + 1UL, 0) < 0 ? NUMATP_SYSTEM : NUMATP_OK;
}

int numatp_pages_nodes(const void *start, int64_t bytes, int64_t *nodes, int num_nodes, int64_t *absent)
{
    const int64_t page = numatp_page_bytes();
    uintptr_t next = (uintptr_t)start / (uintptr_t)page * (uintptr_t)page, end = (uintptr_t)start + (uintptr_t)bytes;
    while (next < end) {
        void *pages[PAGES_PER_CALL];
        int status[PAGES_PER_CALL]; /* node of the page, or -errno */
        unsigned long count = 0;
        for (; count < PAGES_PER_CALL && next < end; next += (uintptr_t)page)
            pages[count++] = (void *)next;
        if (syscall(SYS_move_pages, 0, count, pages, NULL, status, 0) < 0)
            return NUMATP_SYSTEM;
        for (unsigned long i = 0; i < count; i++) {
            if (status[i] >= num_nodes) {
                errno = ERANGE;
                return NUMATP_SYSTEM;
            }
            if (status[i] >= 0)
                nodes[status[i]]++;
            else
                (*absent)++;
        }
    }
    return NUMATP_OK;
}
