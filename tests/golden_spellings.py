"""What spellings mean that no golden request has, because we would write them differently.

Owns: these meanings, by name.  Must not know: how frames are encoded.
"""

from golden_meanings import PROD

from overlayd import wire

SPELLINGS = {
    "partial_nat": (
        7,
        wire.SetupGlobalOverlay(
            **PROD,
            nat=wire.NatConfig(
                enabled=True,
                stun_servers=("stun.l.google.com:19302", "stun1.l.google.com:19302"),
                turn_servers=(),
                hole_punch_timeout_secs=15,
                stun_refresh_interval_secs=60,
                max_candidate_pairs=4,
                relay_server=wire.RelayServer(3478, "192.0.2.1:3478", 100),
            ),
        ),
    ),
    "empty_nat": (7, wire.SetupGlobalOverlay(**PROD, nat=wire.NatConfig())),
    "nat_bare_objects": (
        7,
        wire.SetupGlobalOverlay(
            **PROD,
            nat=wire.NatConfig(
                turn_servers=(wire.TurnServer("192.0.2.1:3478"), wire.TurnServer()), relay_server=wire.RelayServer()
            ),
        ),
    ),
    "nat_zeros": (
        7,
        wire.SetupGlobalOverlay(
            **PROD,
            nat=wire.NatConfig(
                stun_servers=(),
                hole_punch_timeout_secs=0,
                stun_refresh_interval_secs=0,
                max_candidate_pairs=0,
                relay_server=wire.RelayServer(0, "", 0),
            ),
        ),
    ),
    "nat_ask_nobody": (7, wire.SetupGlobalOverlay(**PROD, nat=wire.NatConfig(stun_servers=("none",)))),
}
