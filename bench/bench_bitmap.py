"""The lowest free host offset: `bitmap.Bitmap` beside pyroaring and bitarray, in a /16, half full and nearly full.

Run: python bench/bench_bitmap.py [--fast]   (needs pyroaring and bitarray)
"""

from bitarray import bitarray
from pyroaring import BitMap
from smoke import make_runner

from overlayd._fast.bitmap import Bitmap

SIZE = 65_536


def ours(bitmap: Bitmap) -> None:
    bitmap.clear(bitmap.allocate())


def roaring(free: BitMap) -> None:
    i = free.min()
    free.remove(i)
    free.add(i)


def bits(held: bitarray) -> None:
    i = held.find(0)
    held[i] = 1
    held[i] = 0


def main() -> None:
    runner = make_runner()
    for held in (SIZE // 2, SIZE - 10):
        bitmap = Bitmap(SIZE)
        for _ in range(held):
            bitmap.allocate()
        array = bitarray(SIZE)
        array.setall(0)
        array[:held] = 1
        runner.bench_func(f"allocate and release, {held} held: bitmap.Bitmap", ours, bitmap)
        runner.bench_func(f"allocate and release, {held} held: pyroaring", roaring, BitMap(range(held, SIZE)))
        runner.bench_func(f"allocate and release, {held} held: bitarray", bits, array)


if __name__ == "__main__":
    main()
