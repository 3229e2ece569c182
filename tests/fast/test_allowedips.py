import gc
import random
import sys
import weakref
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from no_memory import no_memory
from oracles_allowedips import DictAllowedIPs

from overlayd._fast.allowedips import AllowedIPs

Prefix = tuple[bytes, int]


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    """Prefixes of either version; few distinct bits, so that they nest, meet and share stems of every length."""
    size = draw(st.sampled_from([4, 16]))
    base = bytearray(draw(st.sampled_from([b"\x00", b"\x0a", b"\xff"])) * size)
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, size * 8 - 1))
        base[position // 8] ^= 0x80 >> position % 8
    near_a_border = st.sampled_from([0, 1, 8, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128])
    return bytes(base), min(draw(st.one_of(near_a_border, st.integers(0, 128))), size * 8)


def script(max_size: int) -> st.SearchStrategy[list[tuple[str, Prefix]]]:
    return st.lists(st.tuples(st.sampled_from(["insert", "insert", "remove"]), prefixes()), max_size=max_size)


def dense(trie: AllowedIPs[object], oracle: DictAllowedIPs, count: int) -> list[Prefix]:
    """Fill both with random IPv4 prefixes in a few /16s, enough for the root table; returns them."""
    rng = random.Random(count)
    held: list[Prefix] = []
    while len(oracle.networks) < count:
        packed = bytes([10, rng.choice([0, 1, 7, 200]), rng.randrange(256), rng.randrange(256)])
        held.append((packed, rng.choice([9, 12, 15, 16, 17, 20, 24, 28, 30, 32])))
        value = object()
        assert trie.insert(*held[-1], value) is oracle.insert(*held[-1], value)
    return held


def assert_same_everywhere(trie: AllowedIPs[object], oracle: DictAllowedIPs, asked: list[Prefix]) -> None:
    assert len(trie) == len(oracle.networks)
    assert list(trie) == oracle.entries()
    for packed, prefix_len in asked:
        assert trie.lookup(packed) is oracle.lookup(packed)
        assert trie.exact(packed, prefix_len) is oracle.exact(packed, prefix_len)
        assert trie.covering(packed, prefix_len) == oracle.covering(packed, prefix_len)
        assert trie.within(packed, prefix_len) == oracle.within(packed, prefix_len)


def run(trie: AllowedIPs[object], oracle: DictAllowedIPs, steps: list[tuple[str, Prefix]]) -> None:
    for operation, (packed, prefix_len) in steps:
        if operation == "insert":
            value = object()
            assert trie.insert(packed, prefix_len, value) is oracle.insert(packed, prefix_len, value)
        else:
            assert trie.remove(packed, prefix_len) is oracle.remove(packed, prefix_len)


@given(script(40), st.lists(prefixes(), max_size=10))
def test_it_agrees_with_a_search_of_all_prefixes(steps: list[tuple[str, Prefix]], asked: list[Prefix]) -> None:
    trie: AllowedIPs[object] = AllowedIPs()
    oracle = DictAllowedIPs()
    run(trie, oracle, steps)
    assert_same_everywhere(trie, oracle, asked + [prefix for _, prefix in steps])


@settings(max_examples=25)  # the oracle is slow with this many prefixes
@given(script(30), st.lists(prefixes(), max_size=10), st.integers(250, 262))
def test_it_agrees_above_the_root_table(steps: list[tuple[str, Prefix]], asked: list[Prefix], count: int) -> None:
    trie: AllowedIPs[object] = AllowedIPs()
    oracle = DictAllowedIPs()
    held = dense(trie, oracle, count)
    run(trie, oracle, steps)
    edges = [(bytes([10, second, 0, 0]), 16) for second in (0, 1, 2, 7, 8, 199, 200, 255)]
    for packed, _ in asked + held[::64] + edges + [prefix for _, prefix in steps]:
        assert trie.lookup(packed) is oracle.lookup(packed)
    for packed, prefix_len in held:
        assert trie.remove(packed, prefix_len) is oracle.remove(packed, prefix_len)
    assert_same_everywhere(trie, oracle, asked + [prefix for _, prefix in steps])


STEMS = [b"", b"\x0a\xc8", b"\xfd" + bytes(7), b"\xfd\0\0\1\0\2\0\3\x80", b"\xfd" + bytes(12)]


@settings(max_examples=10)  # the oracle is slow with this many prefixes
@given(st.sampled_from(STEMS), st.integers(0, 1 << 32), st.lists(prefixes(), max_size=12))
def test_a_table_behind_common_bits_agrees_whatever_comes_and_goes(
    stem: bytes, seed: int, others: list[Prefix]
) -> None:
    """stem: of all prefixes, until others come that do not have it, or contain it."""
    rng = random.Random(seed)
    size = 4 if stem == b"\x0a\xc8" else 16
    trie: AllowedIPs[object] = AllowedIPs()
    oracle = DictAllowedIPs()
    first = len(stem) * 8

    def below() -> Prefix:
        return stem + rng.randbytes(size - len(stem)), min(first + rng.randint(0, 24), size * 8)

    steps = [("insert", below()) for _ in range(280)]
    outer = [(stem.ljust(size, b"\0"), length) for length in (0, first // 2, first)]
    for each in (*outer, *others):
        steps.insert(rng.randrange(200, len(steps)), ("insert", each))
    held = [prefix for _, prefix in steps]
    steps += [("remove", prefix) for prefix in rng.sample(held, 60)]
    steps += [("insert", below()) for _ in range(20)]
    run(trie, oracle, steps)
    asked = [packed for packed, _ in (*rng.sample(held, 20), *outer, *others)]
    asked += [bytes([packed[0] ^ 0x80, *packed[1:]]) for packed in asked]
    asked += [packed[:-1] + bytes([packed[-1] ^ 1]) for packed in asked]
    for packed in asked:
        assert trie.lookup(packed) is oracle.lookup(packed)


def test_a_table_grows_with_what_it_holds() -> None:
    rng = random.Random(1)
    stem = b"\xfd" + bytes(5)
    networks = {stem + rng.randbytes(2) for _ in range(20_000)}
    trie: AllowedIPs[bytes] = AllowedIPs()
    for network in networks:
        trie.insert(network + bytes(8), 64, network)
    for _ in range(20_000):
        network = stem + rng.randbytes(2)
        assert trie.lookup(network + rng.randbytes(8)) == (network if network in networks else None)


@pytest.mark.parametrize("order", ["same", "reverse", "random"])
def test_filling_and_emptying_leaves_nothing(order: str) -> None:
    trie: AllowedIPs[object] = AllowedIPs()
    oracle = DictAllowedIPs()
    for _ in range(2):
        held = dense(trie, oracle, 400)
        for prefix_len in range(33):
            held.append((bytes([10, 1, 2, 3]), prefix_len))
            trie.insert(*held[-1], "nested")
        for prefix_len in range(129):
            held.append((b"\xfd" + bytes(15), prefix_len))
            trie.insert(*held[-1], "nested")
        assert [entry[1] for entry in trie.covering(b"\xfd" + bytes(15), 128)] == list(range(129))
        if order == "reverse":
            held.reverse()
        elif order == "random":
            random.Random(7).shuffle(held)
        for packed, prefix_len in held:
            trie.remove(packed, prefix_len)
            assert trie.exact(packed, prefix_len) is None
        assert (len(trie), list(trie)) == (0, [])
        assert trie.lookup(bytes([10, 1, 2, 3])) is None
        oracle = DictAllowedIPs()


def test_versions_do_not_mix() -> None:
    trie: AllowedIPs[str] = AllowedIPs()
    trie.insert(bytes(4), 0, "four")
    assert trie.lookup(bytes(16)) is None
    trie.insert(bytes(16), 0, "six")
    assert (trie.lookup(b"\xff" * 4), trie.lookup(b"\xff" * 16)) == ("four", "six")
    assert list(trie) == [(bytes(4), 0, "four"), (bytes(16), 0, "six")]


def test_host_bits_are_ignored() -> None:
    trie: AllowedIPs[str] = AllowedIPs()
    assert trie.insert(bytes([10, 1, 2, 3]), 16, "a") is None
    assert trie.insert(bytes([10, 1, 9, 9]), 16, "b") == "a"
    assert list(trie) == [(bytes([10, 1, 0, 0]), 16, "b")]
    assert trie.remove(bytes([10, 1, 255, 0]), 16) == "b"


def test_what_is_no_prefix_is_refused_and_changes_nothing() -> None:
    trie: AllowedIPs[object] = AllowedIPs()
    for packed, prefix_len in [
        (b"", 0),
        (bytes(5), 8),
        (bytes(15), 8),
        (bytes(4), 33),
        (bytes(16), 129),
        (bytes(4), -1),
    ]:
        for call in (trie.remove, trie.exact, trie.covering, trie.within):
            with pytest.raises(ValueError, match=r"packed address|prefix length"):
                call(packed, prefix_len)
        with pytest.raises(ValueError, match=r"packed address|prefix length"):
            trie.insert(packed, prefix_len, 1)
    with pytest.raises(ValueError, match="packed address"):
        trie.lookup(bytes(6))
    with pytest.raises(ValueError, match="None"):
        trie.insert(bytes(4), 0, None)
    with pytest.raises(TypeError):
        trie.lookup("10.0.0.1")  # type: ignore[arg-type]
    assert len(trie) == 0


def test_values_are_held_exactly_as_long_as_their_prefixes() -> None:
    value = object()
    before = sys.getrefcount(value)
    trie: AllowedIPs[object] = AllowedIPs()
    for last in range(200):
        trie.insert(bytes([10, 0, 0, last]), 32, value)
    assert sys.getrefcount(value) == before + 200
    for last in range(100):
        trie.insert(bytes([10, 0, 0, last]), 32, "other")
    for last in range(150):
        trie.remove(bytes([10, 0, 0, last]), 32)
    assert sys.getrefcount(value) == before + 50
    del trie
    assert sys.getrefcount(value) == before


class Holder:
    """A value that holds its trie, and uses it when it dies."""

    def __init__(self, trie: AllowedIPs[object]) -> None:
        self.trie = trie

    def __del__(self) -> None:
        self.trie.lookup(bytes(4))
        self.trie.insert(bytes(4), 7, "late")


def test_a_cycle_through_a_value_is_collected() -> None:
    trie: AllowedIPs[object] = AllowedIPs()
    holder = Holder(trie)
    trie.insert(bytes(4), 8, holder)
    gone = weakref.ref(holder)
    del trie, holder
    gc.collect()
    assert gone() is None


class Meddler:
    """Garbage in a cycle of its own, whose finaliser empties the trie when the collector finds it."""

    def __init__(self, trie: AllowedIPs[object]) -> None:
        self.myself = self
        self.trie = trie

    def __del__(self) -> None:
        for packed, prefix_len, _ in list(self.trie):
            self.trie.remove(packed, prefix_len)


def test_the_place_of_what_was_removed_is_taken_again() -> None:
    trie: AllowedIPs[int] = AllowedIPs()
    oracle = DictAllowedIPs()
    for i in range(200):
        for each in (trie, oracle):
            each.insert(bytes([10, 0, i, 0]), 24, i)
            each.remove(bytes([10, 0, i // 2, 0]), 24)
    assert list(trie) == oracle.entries()
    assert all(trie.lookup(bytes([10, 0, i, 1])) == oracle.lookup(bytes([10, 0, i, 1])) for i in range(256))


def of_many() -> AllowedIPs[object]:
    trie: AllowedIPs[object] = AllowedIPs()
    for i in range(5000):
        trie.insert(bytes([10, 0, i >> 8, i & 255]), 32, "x")
    return trie


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="there the collector runs between two instructions of Python")
def test_a_finaliser_that_changes_the_trie_under_a_listing_is_an_error_and_no_crash() -> None:
    trie = of_many()
    gc.collect()
    Meddler(trie)
    with pytest.raises(RuntimeError, match="changed"):
        trie.within(bytes([10, 0, 0, 0]), 8)
    assert len(trie) == 0


@pytest.mark.parametrize(
    "listed", [iter, lambda trie: trie.within(b"\x0a\0\0\0", 8), lambda trie: trie.covering(b"\x0a\0\0\0", 32)]
)
def test_a_finaliser_that_runs_when_the_list_is_made_comes_before_the_listing(
    listed: Callable[[AllowedIPs[object]], Iterable[object]],
) -> None:
    trie = of_many()
    trie.insert(bytes(4), 0, "x")
    threshold = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        Meddler(trie)
        others = [[None] for _ in range(1000)]  # so that CPython has no spare list at hand, and the collector its turn
        gc.set_threshold(1)
        gc.enable()
        found = listed(trie)
    finally:
        gc.enable()
        gc.set_threshold(*threshold)
    assert len(others) == 1000
    if sys.version_info < (3, 12):
        assert list(found) == []
    gc.collect()
    assert len(trie) == 0


@pytest.mark.parametrize("stem", [b"", b"\xfd" * 4, b"\xfd" * 11, b"\xfd" * 13])
@pytest.mark.parametrize("above", [(), (0,), (8, 24)])
def test_a_table_starts_behind_the_bits_that_all_share(stem: bytes, above: tuple[int, ...]) -> None:
    """above: lengths of prefixes over all the others, which have one child each."""
    trie: AllowedIPs[object] = AllowedIPs()
    oracle = DictAllowedIPs()
    held = [(stem + number.to_bytes(2) + bytes(14 - len(stem)), len(stem) * 8 + 16) for number in range(0, 3000, 7)]
    held += [(held[0][0], prefix_len) for prefix_len in above]
    rng = random.Random(len(stem))
    rng.shuffle(held)
    run(trie, oracle, [("insert", prefix) for prefix in held])
    other = bytes([1]) * 16
    assert_same_everywhere(trie, oracle, [*held[:20], (other, 128), (other, 16)])
    run(trie, oracle, [("remove", prefix) for prefix in held[: len(held) // 2]])
    assert_same_everywhere(trie, oracle, held[-20:])


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("kept", [0, 1, 3, 200])
def test_others_come_when_most_of_those_that_the_table_was_made_for_have_gone(size: int, kept: int) -> None:
    """What is left may not branch anywhere, so that there is nothing to make a table of."""
    trie, oracle = AllowedIPs[int](), DictAllowedIPs()
    first = [(b"\x0a\x01" + n.to_bytes(2, "big") + bytes(size - 4), 32) for n in range(300)]
    others = [(b"\x0a\x02" + n.to_bytes(2, "big") + bytes(size - 4), 32) for n in range(300)]
    above = [(b"\x0a" + bytes(size - 1), length) for length in (9, 10, 11)][:kept]
    beside = (bytes(20 - size), 32)  # of the other version, so that the trie is never empty
    tries: tuple[AllowedIPs[int] | DictAllowedIPs, ...] = (trie, oracle)
    for each in tries:
        each.insert(*beside, -1)
        for number, prefix in enumerate((*above, *first)):
            each.insert(*prefix, number)
        for prefix in first[max(kept - len(above), 0) :]:
            each.remove(*prefix)
        for number, prefix in enumerate(others):
            each.insert(*prefix, number)
    assert all(trie.lookup(packed) == oracle.lookup(packed) for packed, _ in (*first[:20], *others[:20], beside))
    assert list(trie) == oracle.entries()


def test_what_finds_no_memory_is_not_inserted_and_changes_nothing() -> None:
    trie: AllowedIPs[object] = AllowedIPs()
    oracle, inserted = DictAllowedIPs(), 0
    prefixes = [(number.to_bytes(4, "big"), 24) for number in range(10 << 24, (10 << 24) + (1000 << 8), 256)]
    with no_memory(), pytest.raises(MemoryError):
        for packed, prefix_len in prefixes:
            trie.insert(packed, prefix_len, True)
            inserted += 1
    for packed, prefix_len in prefixes[:inserted]:
        oracle.insert(packed, prefix_len, True)
    assert_same_everywhere(trie, oracle, prefixes[inserted : inserted + 1])
    run(trie, oracle, [("insert", prefixes[inserted]), ("remove", prefixes[0])])
    assert_same_everywhere(trie, oracle, prefixes[: inserted + 1])
