"""When a peer is healthy.

Owns: the rule.  Must not know: where handshakes are read, or who is told.
"""

# Seconds for which a handshake vouches for a peer: WireGuard rejects a session after 180 s (REJECT_AFTER_TIME, the
# WireGuard paper, section 6.1), so a peer that answers at all has a younger one while there is traffic.
FRESH = 180
