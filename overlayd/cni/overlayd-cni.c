/* overlayd-cni: what a container runtime executes (CNI, SPEC.md 1.1.0).  It knows no rules: it hands environment, standard
 * input and the open namespace to overlayd, and prints the answer.  Alone it answers VERSION, waits for a daemon that is
 * being replaced, and leaves a DEL that none takes in a directory, which the next daemon does before it serves.
 *
 * Static, without locale and allocation: it is copied to any host, and costs what an exec costs. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef SOCKET_PATH
#define SOCKET_PATH "/run/overlayd/cni.sock"
#endif
#define LARGEST (8 << 20) /* bytes of standard input, and of a frame's body, as on overlayd's other socket */
#define QUEUED 10000      /* DELs that wait for a daemon */
#ifndef RETRY /* milliseconds; the fuzzer of tests/cni has no time */
#define RETRY 50
#define PATIENCE 10000
#define PATIENCE_DEL 2000
#define LIMIT 60000
#endif

static _Alignas(16) char input[LARGEST + 1]; /* the configuration, later the answer */
static char frame[4 + LARGEST];
static size_t filled; /* of frame */
static const char *path, *command;
static long long began;

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

/* --- What is printed and sent: JSON in `frame` --- */

static int put(const char *text, size_t size) { /* as it is; 0: no room */
    if (size > sizeof frame - filled) return 0;
    memcpy(frame + filled, text, size);
    filled += size;
    return 1;
}

static int put_quoted(const char *text, size_t size) { /* as a JSON string; 0: no room, or not UTF-8 (RFC 3629) */
    static const unsigned least[] = {0, 0x80, 0x800, 0x10000};
    if (!put("\"", 1)) return 0;
    for (size_t at = 0; at < size;) {
        unsigned char first = text[at];
        if (first < 0x20) {
            char escaped[8];
            if (!put(escaped, snprintf(escaped, sizeof escaped, "\\u%04x", first))) return 0;
            at++;
            continue;
        }
        if ((first == '"' || first == '\\') && !put("\\", 1)) return 0;
        size_t more = first < 0x80 ? 0 : first < 0xc0 ? 4 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf8 ? 3 : 4;
        if (more == 4 || size - at <= more) return 0;
        unsigned point = more ? first & (0x3f >> more) : first;
        for (size_t next = 1; next <= more; next++) {
            if ((text[at + next] & 0xc0) != 0x80) return 0;
            point = point << 6 | (text[at + next] & 0x3f);
        }
        if (point < least[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return 0;
        if (!put(text + at, more + 1)) return 0;
        at += more + 1;
    }
    return put("\"", 1);
}

static void print(const char *text, size_t size) {
    while (size) {
        ssize_t written = write(STDOUT_FILENO, text, size);
        if (written < 0 && errno != EINTR) _exit(1);
        if (written > 0) text += written, size -= written;
    }
}

/* The specification's error on standard output; `what` may be of any bytes, those that are not ASCII as '?'. */
static void fail(int code, const char *message, const char *what, const char *reason, const char *details) {
    char text[1024], shown[PATH_MAX + 1];
    snprintf(shown, sizeof shown, "%s", what);
    for (char *each = shown; *each; each++)
        if ((unsigned char)*each - 0x20u >= 0x5f) *each = '?';
    snprintf(text, sizeof text, message, shown, reason);
    filled = 0;
    put(frame, snprintf(frame, sizeof frame, "{\"cniVersion\":\"1.1.0\",\"code\":%d,\"msg\":", code));
    put_quoted(text, strlen(text));
    put(",\"details\":", 11);
    put_quoted(details, strlen(details));
    put("}\n", 2);
    print(frame, filled);
    _exit(1);
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

static void make_request(void) {
    static const char *const keys[][2] = {{"{\"cni\":{\"command\":", "CNI_COMMAND"},
                                          {",\"container_id\":", "CNI_CONTAINERID"},
                                          {",\"netns\":", "CNI_NETNS"},
                                          {",\"ifname\":", "CNI_IFNAME"},
                                          {",\"args\":", "CNI_ARGS"},
                                          {",\"path\":", "CNI_PATH"}};
    size_t size = 0;
    for (ssize_t got; size < sizeof input; size += got) {
        got = read(STDIN_FILENO, input + size, sizeof input - size);
        if (got < 0 && errno == EINTR) got = 0;
        else if (got < 0) fail(5, "cannot read standard input%s: %s", "", strerror(errno), "");
        else if (got == 0) break;
    }
    if (size > LARGEST) fail(6, "the network's configuration has more than 8 MiB%s", "", "", "");
    filled = 4;
    for (size_t key = 0; key < sizeof keys / sizeof *keys; key++) {
        const char *value = variable(keys[key][1]);
        put(keys[key][0], strlen(keys[key][0]));
        if (!put_quoted(value, strlen(value))) fail(4, "%s is not UTF-8", keys[key][1], "", "");
    }
    put("},\"config\":", 11);
    if (!put_quoted(input, size) || !put("}", 1))
        fail(6, "the network's configuration is not UTF-8, or has more than 8 MiB%s", "", "", "");
    uint32_t body = filled - 4;
    for (int byte = 0; byte < 4; byte++) frame[byte] = body >> 8 * byte;
}

/* --- The daemon --- */

static int wait_for(int connection, short events) { /* 0: not within LIMIT of the start */
    struct pollfd entry = {.fd = connection, .events = events};
    for (;;) {
        long long left = began + LIMIT - now();
        int ready = left > 0 ? poll(&entry, 1, (int)left) : 0;
        if (ready >= 0 || errno != EINTR) return ready > 0;
    }
}

static int connected(void) { /* -1 with errno */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (strlen(path) >= sizeof address.sun_path) return errno = ENAMETOOLONG, -1;
    memcpy(address.sun_path, path, strlen(path));
    if (connection >= 0 && connect(connection, (struct sockaddr *)&address, sizeof address)) {
        int reason = errno;
        close(connection);
        return errno = reason, -1;
    }
    return connection;
}

/* The exchange on a connection: 1 with the answer in `input`, of `*size` bytes; 0: the daemon hung up; -1: too late. */
static int exchange(int connection, int namespace, size_t *size) {
    union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } control = {0};
    for (size_t sent = 0; sent < filled;) {
        struct iovec part = {frame + sent, filled - sent};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (!sent && namespace >= 0) {
            message.msg_control = &control, message.msg_controllen = sizeof control.room;
            control.header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
            memcpy(CMSG_DATA(&control.header), &namespace, sizeof namespace);
        }
        ssize_t part_sent = sendmsg(connection, &message, MSG_NOSIGNAL);
        if (part_sent > 0) sent += part_sent;
        else if (errno == EAGAIN && !wait_for(connection, POLLOUT)) return -1;
        else if (errno != EAGAIN && errno != EINTR) return 0;
    }
    for (size_t held = 0, wanted = 4; held < wanted;) {
        ssize_t got = recv(connection, input + held, wanted - held, 0);
        if (got > 0) held += got;
        else if (got < 0 && errno == EAGAIN && !wait_for(connection, POLLIN)) return -1;
        else if (got == 0 || (errno != EAGAIN && errno != EINTR)) return 0;
        if (wanted == 4 && held == 4) {
            uint32_t body = 0;
            for (int byte = 0; byte < 4; byte++) body |= (uint32_t)(unsigned char)input[byte] << 8 * byte;
            if (body > LARGEST - 4) return 0;
            wanted = 4 + (*size = body);
        }
    }
    return 1;
}

static int digit(char character) {
    return character >= '0' && character <= '9' ? character - '0' : character >= 'a' && character <= 'f' ? character - 'a' + 10 : -1;
}

/* Print the answer's text, whose keys have this order and form, and give its exit code; -1: it is no answer. */
static int tell(char *body, size_t size) {
    static const char before[] = "{\"exit\":0,\"stdout\":\"", after[] = "\"}";
    static const char letters[] = "bfnrt", meant[] = "\b\f\n\r\t";
    char *end = body + size, *to = body, *from = body + sizeof before - 1;
    if (size < sizeof before + 1 || memcmp(body, before, 8) || memcmp(body + 9, before + 9, sizeof before - 10)) return -1;
    if (memcmp(end - 2, after, 2) || body[8] < '0' || body[8] > '9') return -1;
    int code = body[8] - '0';
    for (end -= 2; from < end; from++) {
        if (*from == '"') return -1;
        if (*from != '\\') { *to++ = *from; continue; }
        if (++from == end) return -1;
        const char *letter = *from ? strchr(letters, *from) : NULL;
        if (*from == 'u') { /* the daemon writes characters below 0x80 so, if any */
            if (end - from < 5 || from[1] != '0' || from[2] != '0') return -1;
            int high = digit(from[3]), low = digit(from[4]);
            if (high < 0 || high > 7 || low < 0) return -1;
            *to++ = high << 4 | low, from += 4;
        } else *to++ = letter ? meant[letter - letters] : *from;
    }
    print(body, to - body);
    return code;
}

/* --- A DEL that no daemon takes --- */

static int is_plain(const char *text, size_t most, const char *others) { /* SPEC.md's characters, and safe as a file's name */
    size_t size = strlen(text);
    for (size_t at = 0; at < size; at++) {
        char each = text[at] | 0x20;
        if (!(each >= 'a' && each <= 'z') && !(text[at] >= '0' && text[at] <= '9') && !(at && strchr(others, text[at]))) return 0;
    }
    return size && size <= most;
}

static int directory_of_queue(char *name, size_t room) { /* beside the socket: cni-del of cni.sock */
    size_t length = strlen(path), ending = length > 5 && !strcmp(path + length - 5, ".sock") ? 5 : 0;
    int size = snprintf(name, room, "%.*s-del", (int)(length - ending), path);
    return size > 0 && (size_t)size < room ? open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : (errno = ENAMETOOLONG, -1);
}

static void queue_delete(char *queued, size_t room) { /* writes the request there, and its file's name */
    const char *id = variable("CNI_CONTAINERID"), *ifname = variable("CNI_IFNAME");
    static const char remedy[] = "start overlayd, or see its log; the runtime tries again";
    char directory_name[PATH_MAX], draft[64];
    if (!is_plain(id, 200, "_.-")) fail(4, "CNI_CONTAINERID: '%s' is no container's id of at most 200 bytes", id, "", "");
    if (!is_plain(ifname, 15, "_.-")) fail(4, "CNI_IFNAME: '%s' is not the name of an interface", ifname, "", "");
    int directory = directory_of_queue(directory_name, sizeof directory_name), files = 0;
    if (directory < 0) fail(11, "overlayd is not running, and there is no %s to leave the DEL in: %s", directory_name, strerror(errno), remedy);
    for (long size; (size = syscall(SYS_getdents64, directory, input, 32768)) > 0;)
        for (long at = 0; at < size; at += ((struct dirent64 *)(input + at))->d_reclen) files++;
    if (files >= QUEUED + 2) fail(11, "overlayd is not running, and 10000 DELs wait for it in %s already", directory_name, "", remedy);
    snprintf(draft, sizeof draft, ".%ld", (long)getpid());
    snprintf(queued, room, "%s.%s", id, ifname);
    int file = openat(directory, draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t at = 4; file >= 0 && at < filled;) {
        ssize_t written = write(file, frame + at, filled - at);
        if (written > 0) at += written;
        else if (errno != EINTR) { close(file), file = -1; break; }
    }
    if (file < 0 || close(file) || renameat(directory, draft, directory, queued)) {
        int reason = errno;
        unlinkat(directory, draft, 0);
        fail(11, "overlayd is not running, and the DEL cannot be left in %s: %s", directory_name, strerror(reason), remedy);
    }
    close(directory);
}

static void forget_queued(const char *queued) {
    char name[PATH_MAX];
    int directory = directory_of_queue(name, sizeof name);
    if (directory >= 0) unlinkat(directory, queued, 0);
}

int main(void) {
    static const char versions[] = "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";
    began = now();
    path = variable("OVERLAYD_CNI_SOCKET"), command = variable("CNI_COMMAND");
    if (!*path) path = SOCKET_PATH;
    if (!strcmp(command, "VERSION")) return print(versions, sizeof versions - 1), 0;
    int deletes = !strcmp(command, "DEL"), attaches = !strcmp(command, "ADD") || !strcmp(command, "CHECK");
    int asks = !strcmp(command, "STATUS"), namespace = -1;
    if (!deletes && !attaches && !asks && strcmp(command, "GC"))
        fail(4, "CNI_COMMAND: '%s' is none of ADD, DEL, CHECK, STATUS, GC, VERSION", command, "", "a container runtime executes overlayd-cni");
    make_request();
    const char *netns = variable("CNI_NETNS");
    if (*netns && (attaches || deletes)) {
        struct stat found; /* looked at before it is opened: a pipe may keep us for ever, and a device may do something */
        if (stat(netns, &found) || S_ISREG(found.st_mode)) namespace = open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        else if (attaches) fail(4, "CNI_NETNS: %s is no network namespace", netns, "", "the runtime has to give the file of a network namespace");
        if (namespace < 0 && attaches)
            fail(errno == ENOENT ? 3 : 4, "CNI_NETNS: %s: %s", netns, strerror(errno), "the container has ended, or its namespace was removed");
    }
    char queued[256] = "";
    long long missed = began; /* since when nobody serves */
    for (;;) {
        size_t size = 0;
        int connection = connected(), reason = errno, ended = 0;
        if (connection >= 0 && (ended = exchange(connection, namespace, &size)) > 0) {
            if (*queued) forget_queued(queued);
            int code = tell(input + 4, size);
            if (code >= 0) return code;
            fail(11, "the answer of overlayd (%s) is not understood", path, "", "have overlayd and overlayd-cni of one version: overlayctl cni install");
        }
        if (connection >= 0) close(connection), reason = ECONNRESET, missed = now();
        if (ended < 0 || now() - began > LIMIT)
            fail(11, "overlayd (%s) has not answered in 60 s", path, "", "see its log; the runtime tries again");
        int waits = reason == ENOENT || reason == ECONNREFUSED || reason == ECONNRESET || reason == EAGAIN;
        if (asks && reason != EAGAIN) fail(50, "overlayd is not running (%s): %s", path, strerror(reason), "start overlayd");
        if (*queued && reason != EAGAIN) return 0; /* nobody came for it meanwhile: the next daemon does it */
        if (reason != EAGAIN && now() - missed >= (!waits ? 0 : deletes ? PATIENCE_DEL : PATIENCE)) {
            if (!deletes) fail(11, "overlayd is not running (%s): %s", path, strerror(reason), "start overlayd, or see its log; the runtime tries again");
            queue_delete(queued, sizeof queued);
            continue; /* once more: a daemon that has begun to listen looked into the directory before */
        }
        poll(NULL, 0, RETRY);
    }
}
