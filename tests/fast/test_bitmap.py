import pytest
from hypothesis import given
from hypothesis import strategies as st
from no_memory import no_memory
from oracles_bitmap import ListBitmap

from overlayd._fast.bitmap import Bitmap

sizes = st.one_of(st.integers(1, 300), st.sampled_from([1, 63, 64, 65, 127, 128, 129, 4096]))
operations = st.lists(
    st.tuples(
        st.sampled_from(["set", "clear", "test", "first_clear", "allocate", "allocate", "fill", "copy"]),
        st.integers(0, 4095),
    ),
    max_size=200,
)


@given(sizes, operations)
def test_it_agrees_with_a_list_of_booleans(size: int, script: list[tuple[str, int]]) -> None:
    bitmap, oracle = Bitmap(size), ListBitmap(size)
    for operation, argument in script:
        i = argument % size
        if operation == "allocate":
            assert bitmap.allocate() == oracle.allocate()
        elif operation == "fill":
            for _ in range(i):
                assert bitmap.allocate() == oracle.allocate()
        elif operation == "copy":
            bitmap = bitmap.copy()
        else:
            assert getattr(bitmap, operation)(i) == getattr(oracle, operation)(i)
        assert bitmap.count == oracle.count
    assert [bitmap.test(i) for i in range(size)] == oracle.held
    assert bitmap.first_clear() == oracle.first_clear()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, 65_536])
def test_every_bit_is_allocated_once_in_order_and_then_none(size: int) -> None:
    bitmap = Bitmap(size)
    assert [bitmap.allocate() for _ in range(size)] == list(range(size))
    assert [bitmap.allocate(), bitmap.allocate(), bitmap.first_clear(), bitmap.first_clear(size)] == [-1] * 4
    assert (bitmap.count, bitmap.size) == (size, size)


def test_a_bit_given_back_below_is_found_again() -> None:
    bitmap = Bitmap(65_536)
    for _ in range(65_536):
        bitmap.allocate()
    for i in (40_000, 3, 65_535):
        assert bitmap.clear(i)
    assert [bitmap.allocate() for _ in range(4)] == [3, 40_000, 65_535, -1]


def test_a_copy_is_independent() -> None:
    first = Bitmap(100)
    first.set(0)
    second = first.copy()
    assert second.allocate() == 1
    assert not first.test(1)
    assert first.allocate() == 1
    assert (first.count, second.count) == (2, 2)


@pytest.mark.parametrize("i", [-1, 100, 127, 1 << 62])
def test_out_of_range_is_an_index_error(i: int) -> None:
    bitmap = Bitmap(100)
    for method in (bitmap.set, bitmap.clear, bitmap.test):
        with pytest.raises(IndexError):
            method(i)
    with pytest.raises(IndexError):
        bitmap.first_clear(i + 1 if i > 0 else i)  # the end itself is a legal start


@pytest.mark.parametrize("size", [-1, 65_537, 1 << 62])
def test_sizes_are_bounded(size: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Bitmap(size)


def test_without_memory_there_is_no_bitmap() -> None:
    with no_memory(), pytest.raises(MemoryError):
        Bitmap(65_536)
    assert Bitmap(65_536).allocate() == 0
