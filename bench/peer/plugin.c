/* The least that a CNI plugin can do: the kernel's work of an attach as one program makes it, and one fdatasync.
 *
 * It allots no address, remembers nothing that could be read back, isolates nothing, checks nothing and takes no call
 * twice, so that a plugin which does is measured against what no plugin can go below.
 *
 * Usage: plugin, as a runtime executes it (CNI_COMMAND ADD or DEL, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME), and
 * FLOOR_FILE, to which a line is written for each call.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BRIDGE "floor0"
enum { MTU = 1340, FLAGS = NLM_F_REQUEST | NLM_F_ACK };

static struct {
	char bytes[4096];
	size_t size;
	int messages;
} batch;

static void *append(const void *data, size_t size)
{
	void *at = batch.bytes + batch.size;
	memset(at, 0, NLMSG_ALIGN(size));
	if (data)
		memcpy(at, data, size);
	batch.size += NLMSG_ALIGN(size);
	return at;
}

static struct nlmsghdr *begin(int type, int flags, const void *body, size_t size)
{
	struct nlmsghdr *message = append(NULL, sizeof *message);
	message->nlmsg_type = type;
	message->nlmsg_flags = FLAGS | flags;
	append(body, size);
	batch.messages++;
	return message;
}

static struct rtattr *attribute(int type, const void *data, size_t size)
{
	struct rtattr *at = append(NULL, sizeof *at);
	at->rta_type = type;
	at->rta_len = RTA_LENGTH(size);
	if (data)
		append(data, size);
	return at;
}

static void number(int type, unsigned value)
{
	attribute(type, &value, sizeof value);
}

static void text(int type, const char *value)
{
	attribute(type, value, strlen(value) + 1);
}

static void end_of(struct rtattr *outer)
{
	outer->rta_len = batch.bytes + batch.size - (char *)outer;
}

static void end(struct nlmsghdr *message)
{
	message->nlmsg_len = batch.bytes + batch.size - (char *)message;
}

static int routing(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		err(1, "netlink");
	return fd;
}

/* Send what was gathered, and wait for an answer to each message.  allowed: an errno that is no failure. */
static void flush(int fd, int allowed)
{
	char answer[16384];
	if (send(fd, batch.bytes, batch.size, 0) < 0)
		err(1, "send");
	while (batch.messages) {
		ssize_t got = recv(fd, answer, sizeof answer, 0);
		if (got < 0)
			err(1, "recv");
		for (struct nlmsghdr *each = (void *)answer; NLMSG_OK(each, got); each = NLMSG_NEXT(each, got)) {
			const struct nlmsgerr *error = NLMSG_DATA(each);
			if (error->error && -error->error != allowed)
				errx(1, "netlink: %s", strerror(-error->error));
			batch.messages--;
		}
	}
	batch.size = 0;
}

static void make_bridge(int fd)
{
	struct nlmsghdr *message =
		begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &(struct ifinfomsg){.ifi_flags = IFF_UP, .ifi_change = IFF_UP},
		      sizeof(struct ifinfomsg));
	text(IFLA_IFNAME, BRIDGE);
	struct rtattr *info = attribute(IFLA_LINKINFO, NULL, 0);
	text(IFLA_INFO_KIND, "bridge");
	end_of(info);
	end(message);
	flush(fd, EEXIST);
}

static void make_veth(int fd, const char *name, const char *inside, unsigned bridge, int netns)
{
	struct nlmsghdr *message =
		begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &(struct ifinfomsg){.ifi_flags = IFF_UP, .ifi_change = IFF_UP},
		      sizeof(struct ifinfomsg));
	text(IFLA_IFNAME, name);
	number(IFLA_MTU, MTU);
	number(IFLA_MASTER, bridge);
	number(IFLA_NUM_TX_QUEUES, 1);
	number(IFLA_NUM_RX_QUEUES, 1);
	struct rtattr *info = attribute(IFLA_LINKINFO, NULL, 0);
	text(IFLA_INFO_KIND, "veth");
	struct rtattr *data = attribute(IFLA_INFO_DATA, NULL, 0);
	struct rtattr *peer = attribute(VETH_INFO_PEER, NULL, 0);
	append(NULL, sizeof(struct ifinfomsg));
	text(IFLA_IFNAME, inside);
	number(IFLA_MTU, MTU);
	number(IFLA_NET_NS_FD, netns);
	number(IFLA_NUM_TX_QUEUES, 1);
	number(IFLA_NUM_RX_QUEUES, 1);
	end_of(peer);
	end_of(data);
	end_of(info);
	end(message);
	flush(fd, 0);
}

static void raise_link(unsigned index)
{
	end(begin(RTM_NEWLINK, 0, &(struct ifinfomsg){.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP},
		  sizeof(struct ifinfomsg)));
}

/* What the interface gets in the namespace: up, an address, a default route; `lo` up. */
static void configure(int netns, const char *inside)
{
	if (setns(netns, CLONE_NEWNET))
		err(1, "setns");
	int fd = routing();
	unsigned index = if_nametoindex(inside);
	in_addr_t address = inet_addr("10.9.0.5"), gateway = inet_addr("10.9.0.1");
	raise_link(1);
	raise_link(index);
	struct nlmsghdr *message =
		begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL,
		      &(struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = 24, .ifa_index = index},
		      sizeof(struct ifaddrmsg));
	attribute(IFA_LOCAL, &address, sizeof address);
	end(message);
	message = begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL,
			&(struct rtmsg){.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC,
					.rtm_type = RTN_UNICAST},
			sizeof(struct rtmsg));
	attribute(RTA_GATEWAY, &gateway, sizeof gateway);
	end(message);
	flush(fd, 0);
}

static void delete_link(int fd, const char *name)
{
	struct nlmsghdr *message = begin(RTM_DELLINK, 0, &(struct ifinfomsg){0}, sizeof(struct ifinfomsg));
	text(IFLA_IFNAME, name);
	end(message);
	flush(fd, ENODEV);
}

/* As much as overlayd writes for an attach. */
static void commit(void)
{
	static const char record[400];
	int fd = open(getenv("FLOOR_FILE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, record, sizeof record) < 0 || fdatasync(fd))
		err(1, "%s", getenv("FLOOR_FILE"));
}

int main(void)
{
	char name[IFNAMSIZ], config[65536];
	const char *inside = getenv("CNI_IFNAME");
	if (read(0, config, sizeof config) < 0)
		err(1, "standard input");
	snprintf(name, sizeof name, "f-%s", getenv("CNI_CONTAINERID"));
	int fd = routing();
	commit();
	if (!strcmp(getenv("CNI_COMMAND"), "DEL")) {
		delete_link(fd, name);
		return 0;
	}
	int netns = open(getenv("CNI_NETNS"), O_RDONLY | O_CLOEXEC);
	if (netns < 0)
		err(1, "%s", getenv("CNI_NETNS"));
	unsigned bridge = if_nametoindex(BRIDGE);
	if (!bridge) {
		make_bridge(fd);
		bridge = if_nametoindex(BRIDGE);
	}
	make_veth(fd, name, inside, bridge, netns);
	configure(netns, inside);
	printf("{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"%s\"}],\"ips\":[{\"address\":\"10.9.0.5/24\"}]}", inside);
	return 0;
}
