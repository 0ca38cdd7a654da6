/* The yardstick of cold.py: rows of a file read past the page cache, all of a batch in flight at once.
 *
 * io_uring by its system calls alone, without liburing. Built by cold.py when it runs:
 *     cc -O2 -shared -fPIC -o uring.so uring.c
 */

#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DEPTH = 256 };

struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *done;
    unsigned char *buffers; /* one slot of slot_bytes for each read in flight */
    uint64_t slot_bytes;
};

/* A ring whose reads take at most slot_bytes (whole blocks). NULL and errno where the kernel refuses. */
struct ring *ring_open(uint64_t slot_bytes) {
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    int fd = (int)syscall(__NR_io_uring_setup, DEPTH, &params);
    if (fd < 0) return NULL;
    size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    int access = PROT_READ | PROT_WRITE, kind = MAP_SHARED | MAP_POPULATE;
    char *sq = mmap(NULL, sq_bytes, access, kind, fd, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_bytes, access, kind, fd, IORING_OFF_CQ_RING);
    void *sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), access, kind, fd,
                      IORING_OFF_SQES);
    struct ring *ring = malloc(sizeof *ring);
    void *buffers = NULL;
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED || !ring ||
        posix_memalign(&buffers, 4096, DEPTH * slot_bytes)) {
        close(fd);
        errno = ENOMEM;
        return NULL;
    }
    memset(buffers, 0, DEPTH * slot_bytes);
    ring->fd = fd;
    ring->sq_tail = (unsigned *)(sq + params.sq_off.tail);
    ring->sq_mask = (unsigned *)(sq + params.sq_off.ring_mask);
    ring->sq_array = (unsigned *)(sq + params.sq_off.array);
    ring->cq_head = (unsigned *)(cq + params.cq_off.head);
    ring->cq_tail = (unsigned *)(cq + params.cq_off.tail);
    ring->cq_mask = (unsigned *)(cq + params.cq_off.ring_mask);
    ring->done = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
    ring->entries = sqes;
    ring->buffers = buffers;
    ring->slot_bytes = slot_bytes;
    return ring;
}

/* Read row_bytes at each of `count` offsets of `file` (open with O_DIRECT) into `out`, one after another.
 *
 * Whole blocks of `block` bytes around each row are read. 0, or an errno.
 */
int ring_take(struct ring *ring, int file, const int64_t *offsets, int64_t count, int64_t row_bytes,
              int64_t block, unsigned char *out) {
    for (int64_t first = 0; first < count; first += DEPTH) {
        unsigned batch = (unsigned)(count - first < DEPTH ? count - first : DEPTH);
        unsigned tail = *ring->sq_tail;
        for (unsigned i = 0; i < batch; i++) {
            int64_t begin = offsets[first + i] / block * block;
            int64_t end = (offsets[first + i] + row_bytes + block - 1) / block * block;
            unsigned slot = (tail + i) & *ring->sq_mask;
            struct io_uring_sqe *entry = &ring->entries[slot];
            memset(entry, 0, sizeof *entry);
            entry->opcode = IORING_OP_READ;
            entry->fd = file;
            entry->off = (uint64_t)begin;
            entry->len = (unsigned)(end - begin);
            entry->addr = (uint64_t)(uintptr_t)(ring->buffers + i * ring->slot_bytes);
            entry->user_data = i;
            ring->sq_array[slot] = slot;
        }
        __atomic_store_n(ring->sq_tail, tail + batch, __ATOMIC_RELEASE);
        unsigned submitted = 0, finished = 0;
        while (finished < batch) {
            long taken = syscall(__NR_io_uring_enter, ring->fd, batch - submitted, 1,
                                 IORING_ENTER_GETEVENTS, NULL, 0);
            if (taken < 0 && errno != EINTR) return errno;
            if (taken > 0) submitted += (unsigned)taken;
            unsigned head = *ring->cq_head;
            while (head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
                struct io_uring_cqe *cqe = &ring->done[head & *ring->cq_mask];
                int64_t i = (int64_t)cqe->user_data, offset = offsets[first + i];
                int64_t skip = offset % block;
                if (cqe->res < 0) return -cqe->res;
                /* The last block of a file may be short, but never shorter than its rows. */
                if (cqe->res < skip + row_bytes) return EIO;
                memcpy(out + (first + i) * row_bytes, ring->buffers + i * ring->slot_bytes + skip,
                       (size_t)row_bytes);
                head++;
                finished++;
            }
            __atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
        }
    }
    return 0;
}
