/* The yardstick of requests: the same wire, a thread for each connection and four system calls a request (read the
 * length, read the body, write the length, write the body).  It looks for no more than the id and the operation.
 *
 * Usage: threads SOCKET PUBLIC_KEY
 */
#include <err.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LARGEST = 1 << 16 };

static const char *public_key;

/* Whether all of it was read. */
static int fill(int fd, void *into, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = read(fd, (char *)into + done, size - done);
		if (n <= 0)
			return 0;
		done += n;
	}
	return 1;
}

static int put(int fd, const void *from, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = write(fd, (const char *)from + done, size - done);
		if (n <= 0)
			return 0;
		done += n;
	}
	return 1;
}

static void *serve(void *argument)
{
	int fd = (int)(intptr_t)argument;
	uint32_t length;
	char body[LARGEST + 1], answer[512];

	while (fill(fd, &length, sizeof length) && length <= LARGEST && fill(fd, body, length)) {
		body[length] = 0;
		char *id = strstr(body, "\"id\":"), *op = strstr(body, "\"op\":\"");
		int is_status = op && !strncmp(op + 6, "status\"", 7);
		uint32_t size = snprintf(answer, sizeof answer,
			is_status ? "{\"frame\":\"response\",\"id\":%llu,\"response\":{\"result\":\"status\",\"public_key\":\"%s\","
				    "\"peer_count\":0,\"service_count\":0}}"
				  : "{\"frame\":\"response\",\"id\":%llu,\"response\":{\"result\":\"ok\"}}",
			id ? strtoull(id + 5, NULL, 10) : 0, public_key);
		if (!put(fd, &size, sizeof size) || !put(fd, answer, size))
			break;
	}
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: threads SOCKET PUBLIC_KEY");
	public_key = argv[2];
	signal(SIGPIPE, SIG_IGN); /* a client that leaves early ends its own thread only */
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128))
		err(1, "%s", argv[1]);
	for (;;) {
		pthread_t thread;
		int fd = accept(listener, NULL, NULL);
		if (fd < 0 || pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd))
			err(1, "accept");
		pthread_detach(thread);
	}
}
