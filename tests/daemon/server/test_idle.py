"""Which idle connection gives way first."""

from dataclasses import dataclass, field

from overlayd.daemon.server.idle import IDLE, Idle
from overlayd.daemon.server.listener import Credentials


@dataclass(eq=False)
class Party:
    name: str
    pid: int
    uid: int = 0
    quiet_since: float = 0.0
    paid_until: int = 0
    seen: int = 0
    is_idle: bool = True
    credentials: Credentials = field(init=False)

    def __post_init__(self) -> None:
        self.credentials = Credentials(self.pid, self.uid, 0)


def order(parties: set[Party], idle: Idle[Party], uid: int | None = None) -> str:
    """The names of those who give way, one after the other."""
    names = ""
    while (one := idle.first(uid)) is not None:
        parties.remove(one)
        names += one.name
    return names


def test_the_oldest_of_the_process_that_has_most_goes_first() -> None:
    parties = {
        Party("a", 1, quiet_since=0.0),
        *(Party(name, 2, quiet_since=since) for name, since in (("c", 7.0), ("b", 6.0), ("d", 8.0), ("g", 9.0))),
        *(Party(name, 3, quiet_since=since) for name, since in (("e", 4.0), ("f", 5.0))),
    }
    idle = Idle(parties)
    idle.look(20.0)
    assert order(parties, idle) == "bced"
    idle.look(20.0)
    assert order(parties, idle) == "afg"


def test_who_has_less_than_its_share_is_spared_by_a_flood_that_has_just_come() -> None:
    parties = {Party("a", 1), *(Party("f", 2, quiet_since=20.0) for _ in range(9))}
    idle = Idle(parties)
    idle.look(20.0)
    assert order(parties, idle) == ""
    idle.look(20.0 + IDLE)
    assert order(parties, idle) == "ffffff"
    assert len(parties) == 4


def test_who_has_just_come_or_spoken_stays() -> None:
    new, spoke, speaks = Party("n", 1, quiet_since=20.0), Party("s", 1, paid_until=3), Party("t", 1)
    busy, foreign = Party("b", 1, is_idle=False), Party("f", 2, uid=7)
    parties = {new, spoke, speaks, busy, foreign}
    idle = Idle(parties)
    idle.look(20.0)
    assert (spoke.seen, spoke.quiet_since) == (3, 20.0)
    speaks.paid_until = 1
    assert order(parties, idle, 0) == ""
    assert order(parties, idle, 7) == "f"
    idle.look(20.0 + IDLE)
    assert set(order(parties, idle)) == {"n", "s"}
    assert parties == {speaks, busy}
