/* Calls the shim's main over and over, within one process, with damaged standard input, environments and answers: under
 * AddressSanitizer and UBSan nothing but its own answers may come of it.
 *
 *   fuzz_shim DIRECTORY ROUNDS SEED     DIRECTORY is empty, and gets a socket and a queue of DELs
 *
 * Prints how often the shim ended with which error code, 0 for none, -1 for what the daemon answered. */
#define RETRY 0
#define PATIENCE 0
#define PATIENCE_DEL 0
#define LIMIT 2000
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
static jmp_buf ended;
#define main shim_main
#define _exit(code) longjmp(ended, (code) + 1)
#include "overlayd-cni.c"
#undef main
#undef _exit

static unsigned long long state;

static unsigned chance(unsigned most) { /* 0..most-1: xorshift64 */
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % most;
}

static size_t damaged(const char *seed, size_t size, char *to, size_t room) {
    memcpy(to, seed, size);
    for (unsigned times = chance(10) ? 0 : 1 + chance(3); times; times--) {
        size_t at = chance(size + 1);
        unsigned long long word = state;
        switch (chance(4)) {
        case 0: to[at < size ? at : 0] = word; break;
        case 1: size = at; break;
        case 2: if (size + at < room) memmove(to + at + at / 2, to + at, size - at), size += at / 2; break;
        default: for (unsigned more = chance(300); more && size < room; more--) to[size++] = chance(8) ? '\\' : (char)chance(256);
        }
        if (!size) break;
    }
    return size;
}

static void serve(int listener) { /* answers everybody with something damaged, or nothing */
    static const char seed[] = "....{\"exit\":0,\"stdout\":\"{\\\"cniVersion\\\":\\\"1.1.0\\\",\\u000a}\"}";
    static char got[65536], answer[8192];
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) _exit(1);
        if (chance(8)) {
            ssize_t size = recv(connection, got, sizeof got, 0);
            (void)size;
            size_t length = damaged(seed, sizeof seed - 1, answer, sizeof answer - 4096);
            if (length >= 4 && chance(4)) for (int byte = 0; byte < 4; byte++) answer[byte] = (length - 4) >> 8 * byte;
            if (send(connection, answer, length, MSG_NOSIGNAL) < 0) { /* it has gone: as well */ }
        }
        close(connection);
    }
}

static void set(const char *name, const char *usual, const char *const *others, size_t number) {
    char value[512];
    const char *seed = chance(8) ? usual : others[chance(number)];
    size_t size = damaged(seed, strlen(seed), value, sizeof value - 301);
    value[size] = 0;
    if (chance(20)) setenv(name, value, 1);
    else unsetenv(name);
}

int main(int count, char **arguments) {
    static const char config[] = "{\"cniVersion\":\"1.1.0\",\"name\":\"overlay\",\"type\":\"overlayd-cni\",\"x\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\xb3\\n\"}";
    static const char *const commands[] = {"ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "del", ""};
    static const char *const paths[] = {"/proc/self/ns/net", "/none", "", "/dev/null", "a", "/proc/self/ns/net/x"};
    static const char *const words[] = {"", "..", "a/b", "a\x01", "\xff\xfe", "eth0", "b2f7c1d09e", "\xed\xa0\x80", "%s%n"};
    static char stdin_text[4096], place[200];
    static unsigned long codes[256], without, answers;
    if (count != 4) return 2;
    state = strtoull(arguments[3], NULL, 10) * 2 + 1;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/cni.sock", arguments[1]);
    snprintf(place, sizeof place, "%s/cni-del", arguments[1]);
    mkdir(place, 0700);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 100)) return 3;
    pid_t server = fork();
    if (!server) serve(listener);
    int real = dup(STDOUT_FILENO);
    for (long rounds = atol(arguments[2]); rounds; rounds--) {
        int in = memfd_create("stdin", 0);
        size_t size = damaged(config, sizeof config - 1, stdin_text, sizeof stdin_text - 1300);
        if (write(in, stdin_text, size) < 0 || lseek(in, 0, SEEK_SET)) return 4;
        dup2(in, STDIN_FILENO), close(in);
        set("CNI_COMMAND", commands[chance(5)], commands, 8);
        set("CNI_CONTAINERID", "b2f7c1d09e", words, 9);
        set("CNI_NETNS", paths[0], paths, 6);
        set("CNI_IFNAME", "eth0", words, 9);
        set("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web", words, 9);
        set("CNI_PATH", "/opt/cni/bin", words, 9);
        setenv("OVERLAYD_CNI_SOCKET", address.sun_path, 1);
        if (!chance(3)) set("OVERLAYD_CNI_SOCKET", address.sun_path, paths, 6);
        int out = memfd_create("stdout", 0);
        dup2(out, STDOUT_FILENO), close(out);
        if (!setjmp(ended)) shim_main();
        char told[64] = "";
        int code;
        if (pread(STDOUT_FILENO, told, sizeof told - 1, 0) <= 0) without++;
        else if (sscanf(told, "{\"cniVersion\":\"1.1.0\",\"code\":%d,", &code) == 1) codes[code & 255]++;
        else answers++;
        for (int left = 3; left < 200; left++) if (left != listener && left != real) close(left);
    }
    kill(server, SIGKILL);
    dup2(real, STDOUT_FILENO);
    printf("-1 %lu\n0 %lu\n", answers, without);
    for (int code = 1; code < 256; code++) if (codes[code]) printf("%d %lu\n", code, codes[code]);
    return 0;
}
