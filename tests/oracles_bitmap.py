"""A bitmap, slow and obvious: a list of booleans."""


class ListBitmap:
    def __init__(self, size: int) -> None:
        self.held = [False] * size

    @property
    def count(self) -> int:
        return sum(self.held)

    def set(self, i: int) -> bool:
        changed = not self.held[i]
        self.held[i] = True
        return changed

    def clear(self, i: int) -> bool:
        changed = self.held[i]
        self.held[i] = False
        return changed

    def test(self, i: int) -> bool:
        return self.held[i]

    def first_clear(self, start: int = 0) -> int:
        return next((i for i in range(start, len(self.held)) if not self.held[i]), -1)

    def allocate(self) -> int:
        i = self.first_clear()
        if i >= 0:
            self.held[i] = True
        return i
