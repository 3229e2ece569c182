"""What each golden frame means, by the name of its file.

Owns: the meanings.  Must not know: how frames are encoded; they were written from the contract.
"""

from typing import Any

from overlayd import wire

KEY_A = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
KEY_B = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
PRIVATE = "QK8q3ChZ0eyVJZ4yO2zXvrsI5GIKK/W0FWS9mCvUwm0="
CANDIDATES = (
    wire.NatCandidate("host", "192.0.2.7:51820", 2130706431),
    wire.NatCandidate("server-reflexive", "[2001:db8::7]:51820", 2**32 - 1),
)
PEER = wire.Peer(KEY_A, "192.0.2.7:51820", "10.200.0.0/16", 25)
WEB = wire.ServiceScope("web")
PROD: dict[str, Any] = {"deployment": "prod", "instance_id": "i-1", "cluster_cidr": "10.200.0.0/16", "wg_port": 51820}

REQUESTS: dict[str, tuple[int, wire.Request]] = {
    "set_local_node_id": (2**64 - 1, wire.SetLocalNodeId(2**64 - 1)),
    "set_local_wg_pubkey": (7, wire.SetLocalWgPubkey(KEY_A)),
    "setup_global_overlay": (7, wire.SetupGlobalOverlay(**PROD)),
    "setup_global_overlay_full": (
        7,
        wire.SetupGlobalOverlay(
            **{**PROD, "wg_port": 65535},
            slice_cidr="10.200.7.0/24",
            host_adapter_mandatory=True,
            nat=wire.NatConfig(
                enabled=False,
                stun_servers=("stun.example.net:3478",),
                turn_servers=(wire.TurnServer("turn.example.net:3478", "u", "p"),),
                hole_punch_timeout_secs=5,
                stun_refresh_interval_secs=30,
                max_candidate_pairs=4,
                relay_server=wire.RelayServer(3478, "192.0.2.1:3478", 100, "secret"),
            ),
        ),
    ),
    "teardown_global_overlay": (7, wire.TeardownGlobalOverlay()),
    "setup_service_overlay": (7, wire.SetupServiceOverlay("web", "dedicated")),
    "setup_service_overlay_isolated": (7, wire.SetupServiceOverlay("web", "isolated")),
    "setup_service_overlay_subnet": (7, wire.SetupServiceOverlay("web", "auto", "10.200.9.0/28")),
    "teardown_service_overlay": (7, wire.TeardownServiceOverlay("web")),
    "allocate_ip": (7, wire.AllocateIp("web", True)),
    "release_ip": (7, wire.ReleaseIp("fd00::5")),
    "attach_container": (7, wire.AttachContainer(wire.LinuxPid(2**32 - 1), "web", False)),
    "attach_container_full": (
        7,
        wire.AttachContainer(
            wire.GuestManaged("vm-1"),
            "web",
            True,
            ephemeral=True,
            isolation_network="blue",
            dns_server="10.200.7.1",
            dns_domain="svc.local",
        ),
    ),
    "attach_container_netns": (
        7,
        wire.AttachContainer(
            wire.LinuxNetns(id="5f2c", path="/run/netns/cni-7d", ifname="net1"),
            "web",
            False,
            ip="10.200.7.9",
            mac="02:00:00:00:00:01",
            default_route=False,
        ),
    ),
    "attach_container_windows": (7, wire.AttachContainer(wire.WindowsContainer("5f2c", "10.200.7.9"), "wéb", False)),
    "detach_container": (7, wire.DetachContainer(wire.HostShared("node-exporter"))),
    "add_peer": (7, wire.AddPeer(KEY_A, "192.0.2.7:51820", "10.200.1.0/24,fd00::/120", 25)),
    "add_peer_full": (
        7,
        wire.AddPeer(KEY_A, "node-7.example.net:51820", "10.200.1.0/24,fd00::/120", 25, CANDIDATES, WEB),
    ),
    "remove_peer": (7, wire.RemovePeer(KEY_A)),
    "remove_peer_scoped": (7, wire.RemovePeer(KEY_A, WEB)),
    "add_allowed_ip": (7, wire.AddAllowedIp(KEY_A, "10.200.1.0/24")),
    "add_allowed_ip_scoped": (7, wire.AddAllowedIp(KEY_A, "fd00::/120", WEB)),
    "remove_allowed_ip": (7, wire.RemoveAllowedIp(KEY_A, "10.200.1.0/24")),
    "remove_allowed_ip_scoped": (7, wire.RemoveAllowedIp(KEY_A, "fd00::/120", WEB)),
    "register_dns": (7, wire.RegisterDns("web.svc.local", "10.200.7.5")),
    "unregister_dns": (7, wire.UnregisterDns("web.svc.local")),
    "write_scoped_resolver": (7, wire.WriteScopedResolver("svc.local", "10.200.7.1")),
    "write_scoped_resolver_port": (7, wire.WriteScopedResolver("svc.local", "10.200.7.1", 5353)),
    "remove_scoped_resolver": (7, wire.RemoveScopedResolver("svc.local")),
    "prune_orphan_bridges": (7, wire.PruneOrphanBridges(("zl-prod-i-web-b", "zl-1a2b3c4d5-b"))),
    "status": (0, wire.GetStatus()),
    "nat_tick": (0, wire.NatTick()),
    "nat_status": (0, wire.GetNatStatus()),
    "list_dns": (0, wire.ListDns()),
    "query_dns": (7, wire.QueryDns("web", "AAAA")),
    "query_dns_address": (7, wire.QueryDns("10.200.7.5")),
    "flush_dns": (7, wire.FlushDns()),
    "unregister_dns_ip": (7, wire.UnregisterDns("web.svc.local", "fd00::5")),
    "shutdown": (0, wire.Shutdown()),
    "mint_edge_peer": (7, wire.MintEdgePeer("laptop", 3600, ("10.200.0.0/16",))),
    "mint_edge_peer_everything": (7, wire.MintEdgePeer("laptop", 3600)),
    "mint_edge_peer_endpoint": (
        7,
        wire.MintEdgePeer("laptop", 3600, ("web", "fd00::/120"), "vpn.example.net:51820"),
    ),
    "list_edge_peers": (0, wire.ListEdgePeers()),
    "revoke_edge_peer": (7, wire.RevokeEdgePeer("laptop")),
    "doctor": (0, wire.Doctor()),
    "cluster_init": (7, wire.InitCluster(cluster_cidr="10.200.0.0/16")),
    "cluster_init_full": (
        7,
        wire.InitCluster(
            cluster_cidr="10.200.0.0/16",
            block_prefix=25,
            service_share=0,
            zone="prod.example",
            node_ttl_secs=86400,
        ),
    ),
    "cluster_nodes": (7, wire.ListNodes()),
    "cluster_set": (7, wire.SetCluster("rate", "20")),
    "cluster_leave": (7, wire.LeaveCluster()),
    "cluster_leave_force": (7, wire.LeaveCluster(True)),
    "cluster_remove_node": (7, wire.RemoveNode("web-7")),
    "cluster_rejoin": (7, wire.RejoinCluster()),
    "cluster_accept": (7, wire.AcceptCluster()),
    "cluster_check": (7, wire.CheckCluster()),
    "rotate_key": (7, wire.RotateKey()),
    "rotate_key_soon": (7, wire.RotateKey(after_secs=5, force=True)),
    "add_peer_named": (7, wire.AddPeer(KEY_A, "192.0.2.7:51820", "10.200.1.0/24", 0, name="node-7")),
    "list": (0, wire.ListThings("containers")),
    "renew_devices": (7, wire.RenewDevices()),
    "renew_devices_all": (7, wire.RenewDevices(force=True)),
    "hello": (0, wire.Hello()),
    "watch": (0, wire.Watch()),
}
CLUSTER_NODE = {
    "name": "alpha",
    "node_id": 3,
    "public_key": "K",
    "endpoint": "192.0.2.1:51820",
    "blocks": ("10.200.4.0/24",),
    "nat": False,
    "version": "0.1.0",
}
RESPONSES: dict[str, tuple[int, wire.Response]] = {
    "ok": (2**64 - 1, wire.Ok()),
    "ip": (7, wire.Ip("10.200.7.5")),
    "attached": (7, wire.Attached("10.200.7.5")),
    "attached_service": (7, wire.Attached("10.200.40.66", None, "10.200.40.64/26", "10.200.40.65", 26)),
    "attached_netns": (
        7,
        wire.Attached(
            "10.200.7.9",
            None,
            "10.200.7.0/24",
            "10.200.7.1",
            24,
            wire.Interface(name="net1", mac="02:00:00:00:00:01", mtu=1340, host_name="zl-c0123456789"),
        ),
    ),
    "attached_windows": (7, wire.Attached("10.200.7.5", "0a1b2c3d-0000-4000-8000-000000000001")),
    "guest_config": (7, wire.GuestConfig("10.200.7.5", 16, PRIVATE, KEY_B, 51820, (PEER,))),
    "guest_config_dns": (
        7,
        wire.GuestConfig(
            "fd00::5",
            128,
            PRIVATE,
            KEY_B,
            51820,
            (wire.Peer(PEER.public_key, PEER.endpoint, PEER.allowed_ips, 25, CANDIDATES),),
            "10.200.7.1",
            "svc.local",
        ),
    ),
    "guest_config_no_peers": (7, wire.GuestConfig("fd00::5", 128, PRIVATE, KEY_B, 51820, ())),
    "bridge_name": (7, wire.BridgeName("zl-prod-i-1-g")),
    "bridge_name_service": (7, wire.BridgeName("zl-prod-i-web-b", "fd00:200::100/120", "fd00:200::101", 120)),
    "status": (7, wire.Status(peer_count=0, service_count=0)),
    "status_full": (
        7,
        wire.Status(
            interface="zl-prod-i-1-g",
            node_ip="10.200.7.1",
            public_key=KEY_B,
            overlay_cidr="10.200.0.0/16",
            slice_cidr="10.200.7.0/24",
            peer_count=2,
            service_count=3,
            peers=(
                wire.StatusPeer(KEY_A, "192.0.2.7:51820", "10.200.1.0/24", 1767225600),
                wire.StatusPeer(KEY_B, "", "", 0),
            ),
            dedicated_services=(
                wire.DedicatedService("db", "zl-prod-i-db-d", KEY_B, 51821, "10.200.9.1", "10.200.9.0/28", 1),
            ),
            services=(
                wire.StatusService("db", "dedicated", "zl-prod-i-db-b", "10.200.9.0/28", "10.200.9.1"),
                wire.StatusService("jobs", "isolated", "zl-prod-i-jobs-b", "10.200.16.64/26", "10.200.16.65"),
                wire.StatusService("web", "shared", "zl-prod-i-web-b", "10.200.40.64/26", "10.200.40.65"),
            ),
        ),
    ),
    "nat_status": (7, wire.NatStatus(last_refresh=0)),
    "nat_status_full": (
        7,
        wire.NatStatus(
            candidates=CANDIDATES,
            peers=(wire.NatPeer("7", "hole-punched", "192.0.2.7:51820"), wire.NatPeer("8", "unreachable")),
            last_refresh=1767225600,
        ),
    ),
    "nat_status_no_relay": (
        7,
        wire.NatStatus(last_refresh=0, relay_failure="TURN server 192.0.2.1:3478: no answer"),
    ),
    "pruned_bridges": (7, wire.PrunedBridges(("zl-a-b",))),
    "renewed": (
        7,
        wire.Renewed(
            (
                wire.RenewedDevice(
                    interface="zl-prod-i-1-g",
                    before="0.0.20220316",
                    after="0.0.20250522",
                    down_ms=42,
                    sessions=3,
                    answered=2,
                    restored_ms=61,
                ),
                wire.RenewedDevice(interface="zl-d", down_ms=40, sessions=0, answered=0, restored_ms=0),
            )
        ),
    ),
    "renewed_none": (7, wire.Renewed(())),
    "pruned_bridges_none": (7, wire.PrunedBridges(())),
    "service_overlay": (7, wire.ServiceOverlay("zl-prod-i-web-b", "shared")),
    "service_overlay_dedicated": (
        7,
        wire.ServiceOverlay("zl-prod-i-db-b", "dedicated", KEY_B, 51821, "10.200.9.1", "10.200.9.0/28"),
    ),
    "edge_config": (
        7,
        wire.EdgeConfig(
            version=1,
            name="laptop",
            overlay_ip="10.200.7.9",
            prefix_len=16,
            private_key=PRIVATE,
            public_key=KEY_B,
            peers=(PEER,),
            dns_server="10.200.7.1",
            dns_domain="svc.local",
            expires_at_unix=1767229200,
        ),
    ),
    "edge_peers": (
        7,
        wire.EdgePeers(
            (
                wire.EdgePeer(
                    name="laptop",
                    overlay_ip="10.200.7.9",
                    public_key=KEY_A,
                    minted_at_unix=1767225600,
                    expires_at_unix=1767229200,
                    last_handshake_unix_secs=1767225700,
                    allowed=("10.200.0.0/16",),
                ),
                wire.EdgePeer(
                    name="phone",
                    overlay_ip="10.200.7.10",
                    public_key=KEY_B,
                    minted_at_unix=1767225600,
                    expires_at_unix=1767229200,
                    allowed=("10.200.9.0/26",),
                    services=("web",),
                ),
            )
        ),
    ),
    "dns": (
        7,
        wire.Dns(
            zone="overlay.local",
            names=(wire.DnsName("web", ("10.200.7.5", "fd00::5")),),
            upstreams=(wire.DnsUpstream("192.0.2.1:53", "silent"), wire.DnsUpstream("[2001:db8::1]:53", "ok")),
            cached=12,
            cached_bytes=9000,
            hits=700,
            misses=40,
        ),
    ),
    "dns_answer": (
        7,
        wire.DnsAnswer(
            name="www.example.org.",
            type="A",
            rcode="NOERROR",
            source="cache",
            server="192.0.2.1:53",
            error="stale answer",
            records=(wire.DnsRecord("www.example.org.", "A", 30, "192.0.2.80"),),
            authorities=(wire.DnsRecord("example.org.", "NS", 60, "ns.example.org."),),
            left_out=2,
        ),
    ),
    "dns_answer_none": (7, wire.DnsAnswer(name="nope.", type="A", rcode="NXDOMAIN", source="own")),
    "edge_peers_none": (7, wire.EdgePeers(())),
    "diagnosis": (7, wire.Diagnosis((wire.Finding("bridge zl-prod-i-web-b", "is missing", "restart overlayd"),))),
    "diagnosis_full": (
        7,
        wire.Diagnosis(
            (wire.Finding("port 51820", "is closed", "open it", "wireguard-blocked", "error", "no peer gets in"),)
        ),
    ),
    "diagnosis_none": (7, wire.Diagnosis(())),
    "cluster_nodes": (
        7,
        wire.ClusterNodes(
            (
                wire.ClusterNode(**CLUSTER_NODE),
                wire.ClusterNode(
                    **{**CLUSTER_NODE, "name": "beta", "nat": True},
                    own=True,
                    present=True,
                    since=1700000000,
                    names=2,
                    withheld=True,
                    problem="p",
                ),
            )
        ),
    ),
    "cluster_differences": (7, wire.ClusterDifferences(("node web-7 is in the store, and not in the journal",))),
    "status_cluster": (
        7,
        wire.Status(
            peer_count=0,
            service_count=0,
            cluster=wire.StatusCluster(
                name="prod",
                node="alpha",
                state="connected",
                since=1700000000,
                revision=9,
                nodes=2,
                block="10.200.4.0/24",
                blocks=("10.200.9.0/24",),
                cluster_cidr="10.200.0.0/16",
                endpoint="http://127.0.0.1:2379",
                error="e",
                events=4,
                resyncs=1,
                stale_secs=3,
                publish_window_ms=200,
                skipped_records=1,
                windowed=True,
            ),
        ),
    ),
    "status_facts": (
        7,
        wire.Status(
            peer_count=0,
            service_count=0,
            version="0.9.0",
            backend="kernel",
            mtu=1420,
            wg_port=51820,
            node_id=2**64 - 1,
            started_at_unix=1767225600,
            findings=0,
        ),
    ),
    "nat_status_named": (7, wire.NatStatus(peers=(wire.NatPeer(KEY_A, "direct", name="node-7"),), last_refresh=0)),
    "listing_none": (7, wire.Listing()),
    "listing": (
        7,
        wire.Listing(
            services=(
                wire.ListedService(
                    service="db",
                    mode="dedicated",
                    subnet="10.200.9.0/26",
                    gateway="10.200.9.1",
                    bridge="zl-prod-i-db-b",
                    device="zl-prod-i-db-d",
                    members=2,
                    held=3,
                    since_unix=1767225600,
                ),
            ),
            containers=(
                wire.ListedContainer(
                    handle="pid:71",
                    service="db",
                    ip="10.200.9.2",
                    global_ip="10.200.7.2",
                    isolation_network="blue",
                    link="veth-71-s",
                    mac="02:6f:0a:c8:09:02",
                    names=("db", "db.svc.local"),
                    since_unix=1767225600,
                ),
                wire.ListedContainer(handle="guest:vm-1", service="db", ip="10.200.9.3"),
            ),
            pools=(
                wire.ListedPool(subnet="10.200.7.0/24", size=253, held=1),
                wire.ListedPool(service="db", subnet="10.200.9.0/26", size=61, held=3),
            ),
            addresses=(
                wire.ListedAddress(ip="10.200.7.2", holder="pid:71"),
                wire.ListedAddress(ip="10.200.9.4", service="db", holder="allocate_ip"),
            ),
            networks=(wire.ListedNetwork(network="blue", members=1, services=("db",)),),
            peers=(
                wire.ListedPeer(
                    name="node-7",
                    public_key=KEY_A,
                    kind="node",
                    endpoint="192.0.2.7:51820",
                    allowed_ips=("10.200.1.0/24", "fd00::/120"),
                    path="hole-punched",
                    health="silent",
                    last_handshake_unix_secs=1767225600,
                    rx_bytes=2**64 - 1,
                    tx_bytes=0,
                    persistent_keepalive_secs=25,
                ),
                wire.ListedPeer(
                    public_key=KEY_B,
                    service="db",
                    kind="guest",
                    allowed_ips=(),
                    last_handshake_unix_secs=0,
                    rx_bytes=0,
                    tx_bytes=0,
                    persistent_keepalive_secs=0,
                ),
            ),
        ),
    ),
    "hello": (
        7,
        wire.HelloAnswer(protocol=1, version="0.9.0", requests=("hello", "status"), abilities=("err.code",)),
    ),
    "err_code": (7, wire.Err("no free address in service web: ...", "exhausted")),
    "err": (7, wire.Err('no dedicated overlay for service "wéb"')),
}
EVENTS: dict[str, wire.Event] = {
    "peer_health_changed": wire.PeerHealthChanged(KEY_A, False),
    "changed": wire.Changed("container", "pid:71", "removed"),
    "finding_changed": wire.Changed(
        "finding",
        "the relay",
        "raised",
        wire.Finding("the relay", "does not run", "free its port", "relay-down", "error"),
    ),
    "nat_endpoint_changed": wire.NatEndpointChanged(KEY_A, "[2001:db8::7]:51820"),
}
