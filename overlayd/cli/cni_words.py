"""The words of `overlayctl cni`, their options and help.

Owns: these.  Must not know: what they do (`cni`).
"""

from overlayd.cli.words import Command, option

BIN_DIR = "/opt/cni/bin"
CONF_DIR = "/etc/cni/net.d"

EPILOG = """\
A runtime (containerd, CRI-O, podman with its CNI backend, nomad) takes the first file of the configuration directory
for its network, and executes the plugin that it names.  `install` copies the plugin, waits until containers can be
attached, and has overlayd write the file only then: a node without it is not ready, and gets no containers.

examples:
  overlayctl cni install                              the network "overlay" for /etc/cni/net.d and /opt/cni/bin
  overlayctl cni install --bin-dir /usr/lib/cni       where Debian's podman looks for plugins
  overlayctl cni install --exclusive                  and no other network of this node counts any more
  overlayctl cni check                                is all in place, and would an attach succeed now
  overlayctl cni uninstall

docs/cni.md has the whole way for containerd, podman and Kubernetes.
"""

_PLACES = (
    option(
        "--bin-dir", metavar="DIR", default=BIN_DIR, help="where the runtime looks for plugins (default: %(default)s)"
    ),
    option("--conf-dir", metavar="DIR", default=CONF_DIR, help="where it looks for networks (default: %(default)s)"),
    option(
        "--cni-socket",
        metavar="PATH",
        help="where overlayd serves the plugin (default: $OVERLAYD_CNI_SOCKET, else as of overlayd, by --socket)",
    ),
)

ACTIONS = (
    Command(
        "install",
        "Put the CNI plugin in place, and the network's configuration as soon as containers can be attached.",
        (
            *_PLACES,
            option(
                "--name",
                metavar="NAME",
                default="overlay",
                help="of the network and its service (default: %(default)s)",
            ),
            option(
                "--subnet",
                metavar="CIDR|slice",
                default="slice",
                help="the containers' addresses: slice, this node's own, which every other node reaches (default); "
                "or a CIDR inside the cluster's",
            ),
            option(
                "--exclusive",
                action="store_true",
                help="rename the files of other networks, so that no runtime reads them, until uninstall",
            ),
        ),
        EPILOG,
    ),
    Command(
        "uninstall",
        "Remove both again, once nothing needs them.",
        (*_PLACES, option("--force", action="store_true", help="though containers are attached, or DELs are left")),
        "example: overlayctl cni uninstall",
    ),
    Command("check", "Say what is missing; exits 4 when something is.", _PLACES, "example: overlayctl cni check"),
)
