/*
 * Requests of qtest over an inherited socket, as one would write it by hand: `qtest FILE FD lockstep|pipelined`, where
 * FILE holds a line a request. Prints the seconds that they took, and how many replies there were.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long receive(int sock)
{
    long replies = 0;
    ssize_t size = read(sock, buffer, sizeof buffer);
    if (size <= 0) exit(1);
    for (ssize_t i = 0; i < size; i++) replies += buffer[i] == '\n';
    return replies;
}

int main(int argc, char **argv)
{
    int file = open(argv[1], O_RDONLY), sock = atoi(argv[2]), lockstep = !strcmp(argv[3], "lockstep");
    struct stat info;
    (void)argc, fstat(file, &info);
    char *data = malloc((size_t)info.st_size), *at = data, *end = data + info.st_size;
    if (read(file, data, (size_t)info.st_size) != info.st_size) return 1;
    long requests = 0, replies = 0;
    for (char *p = data; p < end; p++) requests += *p == '\n';
    fcntl(sock, F_SETFL, lockstep ? 0 : O_NONBLOCK);
    double begin = now();
    if (lockstep) {
        while (at < end) {
            char *next = (char *)memchr(at, '\n', (size_t)(end - at)) + 1;
            if (write(sock, at, (size_t)(next - at)) != next - at) return 1;
            long wanted = replies + 1;
            while (replies < wanted) replies += receive(sock);
            at = next;
        }
    } else {
        while (replies < requests) {
            struct pollfd one = { sock, (short)(POLLIN | (at < end ? POLLOUT : 0)), 0 };
            poll(&one, 1, -1);
            if (one.revents & POLLOUT) {
                ssize_t size = write(sock, at, (size_t)(end - at));
                if (size > 0) at += size;
            }
            if (one.revents & POLLIN) replies += receive(sock);
        }
    }
    printf("%.9f %ld\n", now() - begin, replies);
    return 0;
}
