/* The load of bench_relay.py: both ends of one relayed channel, in one thread.
 *
 *     relay_load CLIENT PEER up|down|ping WINDOW SIZE SECONDS
 *
 * CLIENT and PEER are descriptors of connected UDP sockets: to the relay's listening port, channel 0x4000 bound, and to
 * the relayed port.  up, down: datagrams of SIZE bytes from the client to the peer or back, WINDOW of them under way;
 * prints how many arrived a second, and how many did not.  ping: one at a time there and back; prints the median and the
 * 90th percentile of the round trips in microseconds.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 32, LARGEST = 2048, LOST_AFTER = 100 /* ms */, PINGS = 1 << 20 };

static unsigned char out[LARGEST], in[BATCH][LARGEST];
static struct iovec out_vectors[BATCH], in_vectors[BATCH];
static struct mmsghdr outgoing[BATCH], incoming[BATCH];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static int compare(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

static int arrives(int descriptor) {
    struct pollfd wanted = {descriptor, POLLIN, 0};
    return poll(&wanted, 1, LOST_AFTER) > 0;
}

/* One direction. */
static void stream(int from, int to, size_t size, int window, double seconds) {
    long arrived = 0, lost = 0;
    int under_way = 0;
    double start = now();
    for (int i = 0; i < BATCH; i++) {
        out_vectors[i] = (struct iovec){out, size};
        in_vectors[i] = (struct iovec){in[i], LARGEST};
        outgoing[i].msg_hdr = (struct msghdr){.msg_iov = &out_vectors[i], .msg_iovlen = 1};
        incoming[i].msg_hdr = (struct msghdr){.msg_iov = &in_vectors[i], .msg_iovlen = 1};
    }
    while (now() - start < seconds) {
        while (under_way < window) {
            int room = window - under_way < BATCH ? window - under_way : BATCH;
            int sent = sendmmsg(from, outgoing, room, 0);
            if (sent <= 0)
                break;
            under_way += sent;
        }
        if (!arrives(to)) {
            lost += under_way;
            under_way = 0;
            continue;
        }
        int received = recvmmsg(to, incoming, BATCH, MSG_DONTWAIT, NULL);
        if (received > 0) {
            arrived += received;
            under_way = received < under_way ? under_way - received : 0;
        }
    }
    printf("%.0f %ld\n", arrived / (now() - start), lost);
}

static void ping(int client, int peer, size_t size, double seconds) {
    static double times[PINGS];
    int count = 0;
    while (arrives(client)) /* what an earlier stream left under way */
        recv(client, in[0], LARGEST, 0);
    while (arrives(peer))
        recv(peer, in[0], LARGEST, 0);
    double start = now();
    while (now() - start < seconds && count < PINGS) {
        double sent = now();
        if (send(client, out, size, 0) < 0 || !arrives(peer))
            continue;
        ssize_t received = recv(peer, in[0], LARGEST, 0);
        if (received < 0 || send(peer, in[0], received, 0) < 0 || !arrives(client))
            continue;
        recv(client, in[0], LARGEST, 0);
        times[count++] = now() - sent;
    }
    qsort(times, count, sizeof *times, compare);
    printf("%.1f %.1f\n", count ? times[count / 2] * 1e6 : 0.0, count ? times[count * 9 / 10] * 1e6 : 0.0);
}

int main(int count, char **argument) {
    if (count != 7)
        return 2;
    int client = atoi(argument[1]), peer = atoi(argument[2]), window = atoi(argument[4]);
    size_t size = atoi(argument[5]);
    double seconds = atof(argument[6]);
    memcpy(out, (unsigned char[]){0x40, 0, size >> 8, size & 255}, 4);
    if (!strcmp(argument[3], "up"))
        stream(client, peer, 4 + size, window, seconds);
    else if (!strcmp(argument[3], "down"))
        stream(peer, client, size, window, seconds);
    else
        ping(client, peer, 4 + size, seconds);
    return 0;
}
