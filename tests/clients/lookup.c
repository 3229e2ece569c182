/* Looks names up by the C library: each as "name address", or as "name -". */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    struct addrinfo hints, *found;
    char text[INET6_ADDRSTRLEN];

    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    for (int i = 1; i < argc; i++) {
        strcpy(text, "-");
        if (getaddrinfo(argv[i], "80", &hints, &found) == 0) {
            getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
            freeaddrinfo(found);
        }
        printf("%s %s\n", argv[i], text);
    }
    return 0;
}
