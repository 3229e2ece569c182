"""Real container runtimes with the overlay as their network: podman, containerd, cnitool, chains of Debian's plugins.

Each runs in namespaces of a node's own.  Where one cannot be had its tests are skipped with the reason; the library
that runtimes use is `lab.libcni` then.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, ping
from lab.cluster import Member
from lab.libcni import PluginFailed, Runtime
from lab.node import CONTROL
from lab.patience import LIMIT, until
from lab.processes import CommandFailed, run
from lab.runtimes import CONTAINERD, IMAGE, LIBRARIES, PODMAN, RuntimeHost

from overlayd.proto.cni import VERSIONS

PAGE = Path(__file__).parents[2] / "docs" / "cni.md"
CNITOOL = Path(__file__).parents[2] / "build" / "clients" / "go" / "cnitool"
CRICTL = Path(__file__).parents[2] / "build" / "clients" / "go" / "crictl"


def has_cni_backend() -> bool:
    """Podman 5 was made without it."""
    if not PODMAN.exists():
        return False
    libraries = f"LD_LIBRARY_PATH={':'.join(map(str, LIBRARIES))}"
    printed = run(["env", libraries, PODMAN, "--version"], timeout=LIMIT)
    return int(printed.split()[-1].partition(".")[0]) < 5


@pytest.fixture(scope="module")
def members(lab: Lab) -> list[Member]:
    found = [Member(lab, number, name) for number, name in enumerate(("alpha", "beta"), 1)]
    for each in found:
        each.start()
        each.set_up()
    found[0].introduce(found[1])
    found[1].introduce(found[0])
    return found


@pytest.fixture(scope="module")
def hosts(members: list[Member]) -> Iterator[list[RuntimeHost]]:
    with RuntimeHost(members[0].node) as one, RuntimeHost(members[1].node) as other:
        yield [one, other]


@pytest.fixture(scope="module")
def installed(hosts: list[RuntimeHost]) -> list[RuntimeHost]:
    for host in hosts:
        printed = host.install("portmap", "bandwidth", "loopback")
        assert "05-overlayd.conflist: the network overlay, behind it portmap, bandwidth" in printed
    return hosts


@pytest.fixture(scope="module")
def containerds(installed: list[RuntimeHost]) -> list[RuntimeHost]:
    if not (CONTAINERD / "containerd").exists():
        pytest.skip("containerd is not unpacked (make test-packages)")
    for host in installed:
        host.start_containerd()
    return installed


def attached(member: Member) -> dict[str, dict[str, Any]]:
    return {each["handle"]: each for each in member.request("list", what="containers").get("containers", [])}


@pytest.mark.skipif(not has_cni_backend(), reason="there is no podman with a CNI backend here (before podman 5)")
def test_podman(members: list[Member], installed: list[RuntimeHost]) -> None:
    alpha, beta = installed
    words = ("run", "-d", "--network")
    asked = alpha.podman(
        *words, "overlay:ip=10.200.1.50", "--name", "web", "--rootfs", str(alpha.root), "/bin/sleep", "900"
    )
    other = beta.podman(*words, "overlay", "--name", "db", "--rootfs", str(beta.root), "/bin/sleep", "900")
    web, db = attached(members[0])[f"netns:{asked}/eth0"], attached(members[1])[f"netns:{other}/eth0"]
    assert web["ip"] == "10.200.1.50"
    assert web["names"] == [asked[:12]]  # the alias that podman gives
    assert "3 packets received" in alpha.podman("exec", "web", "/bin/ping", "-c", "3", db["ip"])
    assert "nameserver 10.200.1.1" in alpha.podman("exec", "web", "/bin/cat", "/etc/resolv.conf")
    with pytest.raises(CommandFailed, match=f"10.200.1.50 is held by netns:{asked}/eth0"):
        alpha.podman(*words, "overlay:ip=10.200.1.50", "--rootfs", str(alpha.root), "/bin/sleep", "900")
    alpha.podman("stop", "-t", "0", "web")
    until(lambda: attached(members[0]) == {}, "the address of a stopped container is held")
    alpha.podman("start", "web")  # the same id, another namespace
    assert attached(members[0])[f"netns:{asked}/eth0"]["ip"] == "10.200.1.50"
    alpha.podman("rm", "-af", "-t", "0")
    beta.podman("rm", "-af", "-t", "0")
    for member in members:
        until(lambda member=member: attached(member) == {}, "an address is held")  # type: ignore[misc]
        assert member.findings() == []


def test_ctr(members: list[Member], containerds: list[RuntimeHost]) -> None:
    """In the fixed directories of `ctr`; a container that ends takes its namespace along, before DEL is called."""
    running = [
        subprocess.Popen(host.command([CONTAINERD / "ctr", *RUN, name]))
        for host, name in zip(containerds, ("web", "db"), strict=True)
    ]
    handles = ("netns:default-web/eth0", "netns:default-db/eth0")
    for member, handle in zip(members, handles, strict=True):
        until(lambda m=member, h=handle: h in attached(m), "it is not attached")  # type: ignore[misc]
    there = attached(members[1])[handles[1]]["ip"]
    until(lambda: "web" in containerds[0].ctr("tasks", "ls"), "it does not run")
    pinged = containerds[0].ctr("tasks", "exec", "--exec-id", "ping", "web", "/bin/ping", "-c", "3", there)
    assert "3 packets received" in pinged
    for host, name, process, member in zip(containerds, ("web", "db"), running, members, strict=True):
        until(lambda h=host, n=name: n in h.ctr("tasks", "ls"), "it does not run")  # type: ignore[misc]
        host.ctr("tasks", "kill", "-s", "9", name)
        process.wait(LIMIT)
        assert attached(member) == {}
        done = f"cni_del netns:default-{name}/eth0: done"  # written after its answer
        until(lambda m=member, text=done: text in m.node.log.read_text(), member.node.log_tail)  # type: ignore[misc]


RUN = ("run", "--cni", "--rm", "--snapshotter", "native", IMAGE)


@pytest.mark.skipif(not CRICTL.exists(), reason="crictl comes through Go's proxy (make cni-tools), and is not there")
def test_pods_by_the_interface_that_the_kubelet_uses(members: list[Member], containerds: list[RuntimeHost]) -> None:
    def cri(host: RuntimeHost, *words: str) -> str:
        return host.run(CRICTL, "-r", "unix:///run/containerd/containerd.sock", "-t", "60s", *words).strip()

    def ready(host: RuntimeHost) -> bool:
        conditions = json.loads(cri(host, "info"))["status"]["conditions"]
        return next(bool(each["status"]) for each in conditions if each["type"] == "NetworkReady")

    file = containerds[0].conf_dir / "05-overlayd.conflist"
    kept = file.read_text()
    file.unlink()
    until(lambda: not ready(containerds[0]), "it says that there is a network")
    file.write_text(kept)
    until(lambda: ready(containerds[0]), "it does not see the network")
    pods = []
    for host, name in zip(containerds, ("web", "db"), strict=True):
        config = host.directory / "pod.json"
        config.write_text(json.dumps({"metadata": {"name": name, "namespace": "shop", "uid": name}, "linux": {}}))
        pods.append(cri(host, "runp", str(config)))
    here, there = (attached(member)[f"netns:{pod}/eth0"] for member, pod in zip(members, pods, strict=True))
    assert here["names"] == ["web.shop"]
    netns = json.loads(cri(containerds[0], "inspectp", pods[0]))["info"]["runtimeSpec"]["linux"]["namespaces"]
    path = next(each["path"] for each in netns if each["type"] == "network")
    assert "3 received" in containerds[0].run("nsenter", f"--net={path}", "ping", "-c", "3", there["ip"])
    containerds[0].run("umount", path)  # the namespace is gone before anybody says so
    cri(containerds[0], "stopp", pods[0])
    cri(containerds[1], "stopp", pods[1])
    for host, pod, member in zip(containerds, pods, members, strict=True):
        cri(host, "rmp", pod)
        until(lambda m=member: attached(m) == {}, "an address is held")  # type: ignore[misc]


def chain(host: RuntimeHost) -> dict[str, Any]:
    return dict(json.loads((host.conf_dir / "05-overlayd.conflist").read_text()))


def runtime(host: RuntimeHost, member: Member, version: str) -> Runtime:
    socket_path = {"OVERLAYD_CNI_SOCKET": str(member.node.socket.with_name("cni.sock"))}
    within = ["nsenter", f"--net={member.node.namespace}"]
    return Runtime(chain(host), version, [host.bin_dir], within=within, environment=socket_path)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_a_chain_with_portmap_and_bandwidth(
    members: list[Member], installed: list[RuntimeHost], lab: Lab, version: str
) -> None:
    alpha = runtime(installed[0], members[0], version)
    limit = {"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000}
    mapped = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    with lab.container() as container, lab.container() as other:
        given = {"portMappings": mapped, "bandwidth": limit, "ips": ["10.200.1.60/24"]}
        result = alpha.add("c1", str(container.namespace), **given)
        assert result["ips"][0]["address"] == "10.200.1.60/24"
        assert result["cniVersion"] == version
        host = result["interfaces"][0]["name"]
        assert "tbf" in members[0].node.run(["tc", "qdisc", "show", "dev", host])
        assert [each for each in members[0].findings() if each["code"] == "link-filtered"] == []
        with container.open_socket() as listener:
            listener.bind(("0.0.0.0", 80))
            listener.listen()
            with members[0].node.open_socket() as client:
                client.settimeout(LIMIT)
                client.connect((str(members[0].node.address), 8080))
                accepted, _ = listener.accept()
                accepted.close()
            # Its own published port: where bridged packets pass iptables, NAT leads it back to the port it came from.
            with container.open_socket() as client:
                client.settimeout(LIMIT)
                client.connect((str(members[0].node.address), 8080))
                accepted, _ = listener.accept()
                accepted.close()
        # Of ours alone: Debian's portmap 1.1 misses rules of IPv6 that it never made, and its bandwidth dies.
        alpha.check("c1", str(container.namespace), only="overlayd-cni")
        second = alpha.add("c2", str(other.namespace))
        ping(container, second["ips"][0]["address"].partition("/")[0], count=2)
        container.run(["ip", "link", "set", "eth0", "mtu", "1200"])
        with pytest.raises(PluginFailed, match=r"eth0 has the MTU 1200|putting something right"):
            alpha.check("c1", str(container.namespace), only="overlayd-cni")
        alpha.delete("c1", str(container.namespace), **given)
        alpha.delete("c1")
        alpha.delete("c2")
    assert attached(members[0]) == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_library_of_runtimes_at_every_version(
    members: list[Member], installed: list[RuntimeHost], lab: Lab, version: str
) -> None:
    alone = {**chain(installed[0]), "plugins": chain(installed[0])["plugins"][:1]}
    alpha = runtime(installed[0], members[0], version)
    alpha.conflist = alone
    with lab.container() as one, lab.container() as two:
        for container in (one, two):
            assert alpha.add(f"c{container.pid}", str(container.namespace))["cniVersion"] == version
        if version >= "0.4.0":
            alpha.check(f"c{one.pid}", str(one.namespace))
        if version >= "1.1.0":
            alpha.status()
            alpha.collect([(f"c{one.pid}", "eth0")])
            assert set(attached(members[0])) == {f"netns:c{one.pid}/eth0"}
            alpha.collect(None)
            assert set(attached(members[0])) == {f"netns:c{one.pid}/eth0"}
        for container in (one, two):
            alpha.delete(f"c{container.pid}", str(container.namespace))
    assert attached(members[0]) == {}


@pytest.mark.skipif(not CNITOOL.exists(), reason="cnitool comes through Go's proxy (make cni-tools), and is not there")
def test_cnitool(members: list[Member], installed: list[RuntimeHost]) -> None:
    host = installed[0]
    host.run("ip", "netns", "add", "pod")
    alone = host.directory / "alone"  # Debian's chained plugins of 1.1 know neither STATUS nor GC
    alone.mkdir()
    (alone / "1.conflist").write_text(
        json.dumps({**chain(host), "cniVersion": "1.1.0", "plugins": chain(host)["plugins"][:1]})
    )

    def tool(command: str) -> str:
        variables = ["CNI_PATH=/opt/cni/bin", f"NETCONFPATH={alone}"]
        return host.run("env", *variables, CNITOOL, command, "overlay", "/run/netns/pod")

    try:
        result = json.loads(tool("add"))
        assert result["interfaces"][1]["sandbox"] == "/run/netns/pod"
        assert set(attached(members[0])) == {"netns:cnitool-9539caf00070aeae0bd6/eth0"}
        for command in ("check", "status", "gc", "del", "del"):
            tool(command)
        assert attached(members[0]) == {}
    finally:
        host.run("ip", "netns", "del", "pod")


def test_an_installation_is_checked_and_removed(members: list[Member], lab: Lab, tmp_path: Path) -> None:
    node = members[0].node
    places = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d")]
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d" / "01-other.conf").write_text("{}")

    def control(*words: str) -> subprocess.CompletedProcess[str]:
        argv = node.command([*CONTROL, "--socket", node.socket, "--timeout", "3", "cni", *words])
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    missing = control("check", *places)
    assert missing.returncode == 4
    assert "bin/overlayd-cni is not there: overlayctl cni install" in missing.stdout
    assert control("install", *places).returncode == 0
    assert "01-other.conf comes before 05-overlayd.conflist" in control("check", *places).stdout
    assert control("install", "--exclusive", *places).returncode == 0
    assert (
        control("check", *places).stdout == "the plugin and the network are in place, and containers can be attached\n"
    )
    assert (tmp_path / "net.d" / "01-other.conf.overlayd-aside").exists()
    (tmp_path / "bin" / "overlayd-cni").write_bytes(b"old")
    assert "of another version" in control("check", *places).stdout
    with lab.container() as container:
        handle = container.interface()
        members[0].request("setup_service_overlay", service="web", mode="auto")
        members[0].request("attach_container", handle=handle, service="web", join_global=False)
        refused = control("uninstall", *places)
        assert (refused.returncode, refused.stderr) == (
            1,
            "1 containers are attached, and cannot be removed without the plugin\n",
        )
        members[0].request("detach_container", handle=handle)
    assert control("uninstall", *places).returncode == 0
    assert [each.name for each in (tmp_path / "net.d").iterdir()] == ["01-other.conf"]
    assert list((tmp_path / "bin").iterdir()) == []
    wrong = control("install", *places, "--subnet", "10.200.1.5/24")
    assert wrong.returncode == 2
    assert "has host bits set" in wrong.stderr


def test_an_installation_loses_no_file_of_others(members: list[Member], tmp_path: Path) -> None:
    node, (bin_dir, conf_dir) = members[0].node, (tmp_path / "bin", tmp_path / "net.d")
    conf_dir.mkdir()
    ours, other = conf_dir / "05-overlayd.conflist", conf_dir / "10-other.conf"
    aside = conf_dir / "10-other.conf.overlayd-aside"

    def control(word: str, *more: str) -> tuple[int, str]:
        code, printed, complained = node.try_overlayctl(
            "cni", word, "--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir), *more
        )
        return code, f"{printed}{complained}"

    for theirs in (b"{}", b"\xff", b'{"cniVersion":"1.0.0","name":"lan","plugins":[{"type":"bridge"}]}'):
        ours.write_bytes(theirs)
        assert control("install") == (1, f"overlayctl: {ours}: it is not overlayd's: move it away first\n")
        code, told = control("check")
        assert (code, f"{ours}: " in told, "move it away" in told) == (4, True, True), told
        code, told = control("uninstall")
        assert (code, f"{ours}: is not overlayd's, and stays" in told, ours.read_bytes()) == (0, True, theirs), told
    ours.unlink()

    other.write_text("first")
    assert control("install", "--exclusive")[0] == 0
    other.write_text("second")
    code, told = control("install", "--exclusive")
    assert (code, f"{aside}: {other} was put aside before" in told) == (1, True), told
    code, told = control("uninstall")
    assert (code, f"{aside}: stays, for there is another 10-other.conf by now" in told) == (0, True), told
    assert (other.read_text(), aside.read_text()) == ("second", "first")


def test_no_network_is_offered_before_containers_can_be_attached(lab: Lab, tmp_path: Path) -> None:
    late = Member(lab, 7, "late")
    late.start()
    places = ["--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d")]
    code, _, errors = late.node.try_overlayctl("--timeout", "0.1", "cni", "install", *places)
    assert code == 1
    assert f"{tmp_path / 'net.d'}/05-overlayd.conflist is not written: overlayctl cni install again" in errors
    assert late.node.overlayctl("cni", "uninstall", *places) == f"{tmp_path / 'bin'}/overlayd-cni: removed\n"
    assert late.node.overlayctl("cni", "uninstall", *places).startswith("nothing of overlayd is in ")
    argv = late.node.command([*CONTROL, "--socket", late.node.socket, "--timeout", "60", "cni", "install", *places])
    installing = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert installing.stderr is not None
    assert installing.stderr.readline() == ("waiting: no container can be attached: the global overlay is not set up\n")
    assert not list((tmp_path / "net.d").iterdir())
    late.set_up()
    _, errors = installing.communicate(timeout=LIMIT)
    assert installing.returncode == 0, errors
    assert [each.name for each in (tmp_path / "net.d").iterdir()] == ["05-overlayd.conflist"]
    assert "offers the network overlay to container runtimes" in late.node.log.read_text()
    late.node.stop()
    assert (tmp_path / "net.d" / "05-overlayd.conflist").exists()


def blocks(heading: str) -> list[str]:
    """The commands under a heading of the page."""
    page = re.sub(r"^```toml\n.*?^```$", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def pasted(commands: str, host: RuntimeHost, image: str) -> str:
    """Those of the page, with an image that is here, and the directory that the daemon sees: it writes the network's
    configuration, and not where that directory is mounted for the runtimes.
    """
    commands = commands.replace("docker.io/library/busybox:latest", image)
    return commands.replace("cni install", f"cni install --conf-dir '{host.conf_dir}'")


def test_the_page_on_containerd_does_what_it_says(members: list[Member], containerds: list[RuntimeHost]) -> None:
    (commands,) = blocks("containerd")
    printed = containerds[0].run("env", "COLUMNS=80", "sh", "-ec", pasted(commands, containerds[0], IMAGE))
    assert "inet 10.200.1." in printed
    assert "netns:default-web/eth0" in printed
    until(lambda: attached(members[0]) == {}, "an address is held")


@pytest.mark.skipif(not has_cni_backend(), reason="there is no podman with a CNI backend here (before podman 5)")
def test_the_page_on_podman_does_what_it_says(members: list[Member], installed: list[RuntimeHost]) -> None:
    (network,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert network in (installed[0].directory / "containers.conf").read_text()
    (commands,) = blocks("podman")
    printed = installed[0].run("sh", "-ec", pasted(commands, installed[0], f"--rootfs {installed[0].root}"))
    assert "inet 10.200.1." in printed
    until(lambda: attached(members[0]) == {}, "an address is held")
