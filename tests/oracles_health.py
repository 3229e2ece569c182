"""The health of peers and their moves, worked out from the whole history every time.

Owns: slow and obvious twins of `model.health.HealthTracker` and `RoamingTracker` of the same module.  Must not know:
them.

A history is a list of (now, {key: (endpoint, last_handshake, rx_bytes, tx_bytes)}), oldest first; its first entry is
what was there at the start of the daemon.
"""

UNANSWERED = 15
INITIATION = 148  # bytes of the message that begins a handshake: it asks, and answers nothing


def stretch(history, key):
    """The newest observations in a row that show the peer, and whether they reach back to the daemon's start."""
    seen = []
    for now, peers in reversed(history):
        if key not in peers:
            return seen[::-1], False
        seen.append((now, *peers[key]))
    return seen[::-1], True


def answered(rx, old_rx):
    """Whether something came that is no request for a handshake."""
    return rx > old_rx and (rx - old_rx) % INITIATION != 0


def condition(seen, from_start, fresh):
    """How the peer is at the last observation of a stretch."""
    now, _, handshake, _, _ = seen[-1]
    if handshake and now - handshake < fresh:
        return "answers"
    before = [(None, None, 0, *seen[0][3:]) if from_start else (None, None, 0, 0, 0), *seen]

    def calm(at):
        """Whether nothing waits for an answer after an observation, whatever there was before."""
        time, _, shaken, rx, tx = seen[at]
        _, _, old_shaken, old_rx, old_tx = before[at]
        return (shaken and time - shaken < fresh) or answered(rx, old_rx) or shaken > old_shaken or tx < old_tx

    last_calm = max((at for at in range(len(seen)) if calm(at)), default=-1)
    since = None
    for at in range(max(last_calm, 0), len(seen)):
        time, endpoint, shaken, rx, tx = seen[at]
        _, _, old_shaken, old_rx, old_tx = before[at]
        if since is not None and endpoint != before[at][1]:
            since = time
        if since is None and tx > old_tx and not (answered(rx, old_rx) or shaken > old_shaken):
            since = time
        if since is not None and time - since >= (min(UNANSWERED, fresh) if shaken else fresh):
            return "silent"
    return "idle"


def announced(history, key, fresh):
    """Whether the peer is healthy as its observers know, None when nobody told them."""
    seen, from_start = stretch(history, key)
    value = None if from_start else True
    for end in range(1, len(seen) + 1):
        found = condition(seen[:end], from_start, fresh)
        if end == 1 and from_start:
            value = True if found == "answers" else None
        elif found != "idle":
            value = found == "answers"
    return value


def health_events(history, fresh):
    """What the last observation of the history announces."""
    _, peers = history[-1]
    events = []
    for key in peers:
        _, shown_before = history[-2]
        before = announced(history[:-1], key, fresh) if key in shown_before else True
        after = announced(history, key, fresh)
        if before != after:
            events.append((key, after))
    return events
