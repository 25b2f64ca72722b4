// Connects to ADDRESS:80 by io_uring, without any library for it, and then asks for / of HOST by plain system calls.
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int count, char **words) {
    if (count != 3) return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, words[1], &to.sin_addr);

    struct io_uring_params params = {0};
    int ring = syscall(__NR_io_uring_setup, 1, &params);
    if (ring < 0) return fail("io_uring_setup");
    size_t submit_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t done_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    char *submit = mmap(0, submit_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *done = mmap(0, done_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *entry = mmap(0, params.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                                      IORING_OFF_SQES);
    if (submit == MAP_FAILED || done == MAP_FAILED || entry == MAP_FAILED) return fail("mmap");

    int s = socket(AF_INET, SOCK_STREAM, 0);
    memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_CONNECT;
    entry->fd = s;
    entry->addr = (unsigned long)&to;
    entry->off = sizeof to;
    *(unsigned *)(submit + params.sq_off.array) = 0;
    __atomic_fetch_add((unsigned *)(submit + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1) return fail("io_uring_enter");
    struct io_uring_cqe *result = (struct io_uring_cqe *)(done + params.cq_off.cqes);
    if (result->res != 0) {
        errno = -result->res;
        return fail("connect");
    }

    char buffer[65536];
    int length = snprintf(buffer, sizeof buffer, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", words[2]);
    if (write(s, buffer, length) != length) return fail("write");
    ssize_t got;
    while ((got = read(s, buffer, sizeof buffer)) > 0)
        if (write(1, buffer, got) != got) return 1;
    return got == 0 ? 0 : fail("read");
}
