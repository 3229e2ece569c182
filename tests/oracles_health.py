"""The health of peers and their moves, worked out from the whole history every time.

Owns: slow and obvious twins of `model.health.HealthTracker` and `RoamingTracker` of the same module.  Must not know:
them.

A history is a list of (now, {key: (endpoint, last_handshake)}), oldest first; its first entry is what was there at the
start of the daemon.
"""


def stretch(history, key):
    """The newest observations in a row that show the peer, and whether they reach back to the daemon's start."""
    seen = []
    for now, peers in reversed(history):
        if key not in peers:
            return seen[::-1], False
        seen.append((now, *peers[key]))
    return seen[::-1], True


def healthy(history, key, fresh):
    """Whether the peer counts as healthy at the end of the history."""
    seen, from_start = stretch(history, key)
    verdicts = []
    for at, (now, endpoint, handshake) in enumerate(seen):
        if handshake:
            verdicts.append(now - handshake < fresh)
            continue
        if at == 0 and from_start:
            verdicts.append(endpoint is None)
            continue
        began = at  # when the device began to try this endpoint in vain
        while began and seen[began - 1][1:] == (endpoint, 0):
            began -= 1
        patient = endpoint is None or now - seen[began][0] < fresh
        verdicts.append((verdicts[-1] if verdicts else True) and patient)
    return verdicts[-1]


def health_events(history, fresh):
    """What the last observation of the history announces."""
    _, peers = history[-1]
    events = []
    for key in peers:
        _, shown_before = history[-2]
        before = healthy(history[:-1], key, fresh) if key in shown_before else True
        after = healthy(history, key, fresh)
        if before != after:
            events.append((key, after))
    return events
