# What `syscalls` uses of the headers of the C library and the kernel.

from libc.stdint cimport uint16_t, uint32_t

cdef extern from "<sched.h>" nogil:
    enum: CLONE_NEWNET
    int setns(int descriptor, int kind)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_NETLINK
        MSG_DONTWAIT
        MSG_TRUNC
        SOCK_CLOEXEC
        SOCK_RAW
    struct sockaddr:
        pass
    int socket(int family, int type, int protocol)
    int connect(int descriptor, const sockaddr *address, unsigned int size)
    int setsockopt(int descriptor, int level, int name, const void *value, unsigned int size)
    ssize_t send(int descriptor, const void *data, size_t size, int flags)
    ssize_t recvfrom(int descriptor, void *data, size_t size, int flags, sockaddr *address, unsigned int *length)

cdef extern from "<linux/netlink.h>" nogil:
    enum:
        NETLINK_CAP_ACK
        NETLINK_EXT_ACK
        NETLINK_GET_STRICT_CHK
        NETLINK_ROUTE
        NLM_F_DUMP_INTR
        NLMSG_DONE
        NLMSG_ERROR
        SOL_NETLINK
    struct sockaddr_nl:
        unsigned short nl_family
        uint32_t nl_pid
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
    struct nlattr:
        uint16_t nla_len
        uint16_t nla_type

cdef extern from "<linux/rtnetlink.h>" nogil:
    enum:
        RTA_OIF
        RTM_DELROUTE
        RTM_NEWROUTE

cdef extern from "<net/if.h>" nogil:
    struct ifreq:
        char ifr_name[16]
        int ifr_ifindex

cdef extern from "<sys/ioctl.h>" nogil:
    enum: SIOCGIFINDEX
    int ioctl(int descriptor, unsigned long request, void *argument)

cdef extern from "<fcntl.h>" nogil:
    enum:
        O_CLOEXEC
        O_RDONLY
        O_WRONLY
    int open(const char *path, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int descriptor)
    ssize_t read(int descriptor, void *data, size_t size)
    ssize_t write(int descriptor, const void *data, size_t size)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int nanosleep(const timespec *duration, timespec *rest)
