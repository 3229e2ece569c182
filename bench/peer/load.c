/* The load: CONNECTIONS clients in one thread, each with DEPTH status requests under way, for SECONDS.
 *
 * Prints the answers a second.  One write a batch; the next batch leaves when the last answer of the one before is
 * there.  With one connection it blocks in read, without epoll.
 *
 * Usage: load SOCKET CONNECTIONS DEPTH SECONDS
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char request[] = "{\"frame\":\"request\",\"id\":7,\"request\":{\"op\":\"status\"}}";

struct client {
	int fd;
	int awaited;      /* answers of this batch that are not here yet */
	uint32_t skip;    /* bytes of the current answer's body still to come */
	int header_bytes; /* of the next header */
	uint8_t header[4];
};

static char *batch;
static size_t batch_size;
static char buffer[1 << 18];

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void ask(struct client *client, int depth)
{
	for (size_t done = 0; done < batch_size;) {
		ssize_t n = write(client->fd, batch + done, batch_size - done);
		if (n < 0)
			err(1, "write");
		done += n;
	}
	client->awaited = depth;
}

/* Read once; returns the number of answers that ended. */
static int take(struct client *client)
{
	ssize_t size = read(client->fd, buffer, sizeof buffer);
	int ended = 0;
	if (size <= 0)
		errx(1, "the server hung up");
	for (ssize_t at = 0; at < size;) {
		if (client->skip) {
			uint32_t n = size - at < client->skip ? size - at : client->skip;
			at += n;
			client->skip -= n;
			ended += !client->skip;
		} else {
			client->header[client->header_bytes++] = buffer[at++];
			if (client->header_bytes == 4) {
				memcpy(&client->skip, client->header, 4);
				client->header_bytes = 0;
			}
		}
	}
	client->awaited -= ended;
	return ended;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(2, "usage: load SOCKET CONNECTIONS DEPTH SECONDS");
	int connections = atoi(argv[2]), depth = atoi(argv[3]);
	double seconds = atof(argv[4]);
	uint32_t length = sizeof request - 1;

	batch_size = depth * (4 + length);
	batch = malloc(batch_size);
	for (int i = 0; i < depth; i++) {
		memcpy(batch + i * (4 + length), &length, 4);
		memcpy(batch + i * (4 + length) + 4, request, length);
	}

	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
	struct client *clients = calloc(connections, sizeof *clients);
	int poll = epoll_create1(0);
	for (int i = 0; i < connections; i++) {
		clients[i].fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(clients[i].fd, (struct sockaddr *)&address, sizeof address))
			err(1, "connect %s", argv[1]);
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
		epoll_ctl(poll, EPOLL_CTL_ADD, clients[i].fd, &event);
	}

	long answers = 0;
	double start = now(), end = start + seconds;
	for (int i = 0; i < connections; i++)
		ask(&clients[i], depth);
	for (long rounds = 0; rounds % 64 || now() < end; rounds++) {
		struct epoll_event events[64] = {{.data.ptr = &clients[0]}};
		int ready = connections == 1 ? 1 : epoll_wait(poll, events, 64, -1);
		for (int i = 0; i < ready; i++) {
			struct client *client = events[i].data.ptr;
			answers += take(client);
			if (!client->awaited)
				ask(client, depth);
		}
	}
	printf("%.0f\n", answers / (now() - start));
	return 0;
}
