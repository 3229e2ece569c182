"""overlayctl edge: what it prints, asks, and exits with."""

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from canned import KEY, PRIVATE, Canned

from overlayd import cli, wire
from overlayd.cli import arguments, tables
from overlayd.errors import ProtocolError

EDGE = wire.EdgeConfig(
    version=1,
    name="laptop",
    overlay_ip="10.200.7.9",
    prefix_len=16,
    private_key=PRIVATE,
    public_key=KEY,
    peers=(wire.Peer(KEY, "192.0.2.7:51820", "10.200.0.0/16,fd00::/64", 25),),
    dns_server="10.200.7.1",
    dns_domain="svc.local",
    expires_at_unix=1767229200,
)
EDGE_PEER = wire.EdgePeer(
    name="laptop",
    overlay_ip="10.200.7.9",
    public_key=KEY,
    minted_at_unix=0,
    expires_at_unix=7200,
    last_handshake_unix_secs=0,
    allowed=("10.200.0.0/16",),
)


def test_edge_mint_prints_a_wg_quick_file(canned: Canned, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    canned.answer = lambda request: EDGE
    allow = ["--allow", "10.200.0.0/16", "--allow", "fd00::/64"]
    assert cli.run(["edge", "mint", "laptop", "--ttl", "8h", *allow]) == 0
    out = capsys.readouterr().out
    assert canned.asked == [wire.MintEdgePeer("laptop", 8 * 3600, ("10.200.0.0/16", "fd00::/64"))]
    assert out == (
        "# laptop: an edge peer, until 2026-01-01 01:00:00 UTC\n"
        "\n"
        "[Interface]\n"
        f"PrivateKey = {PRIVATE}\n"
        "Address = 10.200.7.9/16\n"
        "DNS = 10.200.7.1, svc.local\n"
        "\n"
        "[Peer]\n"
        f"PublicKey = {KEY}\n"
        "AllowedIPs = 10.200.0.0/16, fd00::/64\n"
        "Endpoint = 192.0.2.7:51820\n"
        "PersistentKeepalive = 25\n"
    )
    assert shutil.which("wg-quick"), "wg-quick is needed to judge the file"
    file = tmp_path / "edge.conf"
    file.write_text(out)
    stripped = subprocess.run(["wg-quick", "strip", file], capture_output=True, text=True, check=True).stdout
    assert "Address" not in stripped  # wg-quick took its own settings, and leaves what wg reads
    assert f"PublicKey = {KEY}" in stripped


def test_edge_mint_asks_for_everything_or_for_services_and_an_endpoint(canned: Canned) -> None:
    canned.answer = lambda request: EDGE
    assert cli.run(["edge", "mint", "laptop", "--ttl", "90"]) == 0
    options = ["--allow", "web", "--allow", "10.200.1.0/24", "--node-endpoint", "vpn.example.net:51820"]
    assert cli.run(["edge", "mint", "laptop", "--ttl", "90", *options]) == 0
    assert canned.asked == [
        wire.MintEdgePeer("laptop", 90),
        wire.MintEdgePeer("laptop", 90, ("web", "10.200.1.0/24"), "vpn.example.net:51820"),
    ]


def test_edge_mint_as_json(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: EDGE
    assert cli.run(["edge", "mint", "laptop", "--ttl", "90", "--allow", "10.200.0.0/16", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(wire.encode_response_object(EDGE))


def test_a_wg_quick_file_holds_no_commands() -> None:
    fields = {field: getattr(EDGE, field) for field in EDGE.__struct_fields__}
    for field in ("name", "dns_server", "dns_domain", "private_key", "overlay_ip"):
        with pytest.raises(ProtocolError):
            tables.wg_quick(wire.EdgeConfig(**{**fields, field: "x\nPostUp = reboot"}))
    with pytest.raises(ProtocolError):
        tables.wg_quick(wire.EdgeConfig(**{**fields, "peers": (wire.Peer(KEY, "h:1\rPostUp = x", "", 0),)}))
    bare = tables.wg_quick(
        wire.EdgeConfig(
            **{**fields, "dns_server": None, "peers": (wire.Peer(KEY, "", "", 0),), "expires_at_unix": 2**64 - 1}
        )
    )
    assert "DNS" not in bare
    assert "Endpoint" not in bare
    assert "Keepalive" not in bare


@pytest.mark.parametrize("ttl, seconds", [("90", 90), ("90s", 90), ("30m", 1800), ("8h", 28800), ("7d", 604800)])
def test_times_to_live(ttl: str, seconds: int) -> None:
    args = arguments.parser().parse_args(["edge", "mint", "x", "--ttl", ttl, "--allow", "c"])
    assert args.ttl == seconds


@pytest.mark.parametrize("ttl", ["", "h", "1w", "-1h", "1.5h", "٣h", "1 h", "9" * 11])
def test_no_times_to_live(ttl: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["edge", "mint", "x", f"--ttl={ttl}", "--allow", "c"])
    assert "90s, 30m, 8h or 7d" in capsys.readouterr().err


def test_edge_list_and_revoke(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answer = lambda request: (
        wire.EdgePeers((EDGE_PEER,)) if isinstance(request, wire.ListEdgePeers) else wire.Ok()
    )
    assert cli.run(["edge", "list"]) == 0
    assert capsys.readouterr().out == (
        "NAME    ADDRESS     ALLOWED        EXPIRES  LAST HANDSHAKE  PUBLIC KEY\n"
        "laptop  10.200.7.9  10.200.0.0/16  expired  never           yAnz5TF+...\n"
    )
    assert "in 2 h" in tables.edge_peers([EDGE_PEER], wide=False, now=0)
    granted = msgspec.structs.replace(EDGE_PEER, services=("web", "db"))
    assert "  10.200.0.0/16 (of web, db)  " in tables.edge_peers([granted], wide=False, now=0)
    lost = msgspec.structs.replace(EDGE_PEER, allowed=(), services=("web",))
    assert "  none (of web)  " in tables.edge_peers([lost], wide=False, now=0)
    assert cli.run(["edge", "list", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "laptop"
    assert cli.run(["edge", "revoke", "laptop"]) == 0
    assert capsys.readouterr().out == ""
    assert canned.asked[-1] == wire.RevokeEdgePeer("laptop")
    asked = len(canned.asked)
    assert cli.run(["edge", "revoke", "Laptop"]) == 1
    assert canned.asked[asked:] == [wire.ListEdgePeers()]
    assert capsys.readouterr().err == "overlayctl: there is no edge peer Laptop; did you mean laptop?\n"
