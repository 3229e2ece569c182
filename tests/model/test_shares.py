"""Who gives way: nobody is refused, and nobody keeps more than a share while others want theirs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from overlayd.model.shares import Shares

LIMIT = 12
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "remove", "touch"]), st.integers(0, 3), st.integers(0, 3)),
    max_size=80,
)


@given(STEPS, st.integers(0, LIMIT))
def test_against_a_list(steps, limit):
    """The oracle keeps everything in one list, the oldest first."""
    shares, held, number = Shares(limit), [], 0
    for action, ingress, client in steps:
        if action == "add":
            number += 1
            held.append((number, ingress, client))
            displaced = shares.add(number, ingress, client)
            gone = None
            if len(held) > limit:
                by_ingress = Counter(at for _, at, _ in held)
                clients = [c for _, at, c in held if by_ingress[at] == max(by_ingress.values())]
                gone = next(each for each in held if each[0] == displaced)
                _, at, of = gone
                assert by_ingress[at] == max(by_ingress.values()) and of in clients
                counts = Counter(c for _, i, c in held if i == at)
                assert counts[of] == max(counts.values())
                assert gone == next(each for each in held if each[1:] == (at, of)), "the oldest"
                held.remove(gone)
            assert (displaced is None) == (gone is None)
        elif held:
            item = held[(ingress * 4 + client) % len(held)]
            held.remove(item)
            if action == "touch":
                shares.touch(item[0])
                held.append(item)
            else:
                shares.remove(item[0])
        assert len(shares) == len(held)
    for item, *_ in held:
        shares.remove(item)
        shares.remove(item)
        shares.touch(item)
    assert not len(shares) and not shares._held and not shares._count


def test_forged_addresses_at_one_way_in_do_not_starve_another():
    shares = Shares(LIMIT)
    for number in range(100):
        shares.add(("forged", number), "web", number % 8)
    assert shares.add("honest", "db", 1)[0] == "forged"
    for number in range(100, 200):
        assert shares.add(("forged", number), "web", number % 8) != "honest"
    for number in range(LIMIT):
        shares.add(("other", number), "db", 2)
    kept = Counter(where for where, _ in shares._where.values())
    assert kept == {"web": LIMIT // 2, "db": LIMIT // 2}
