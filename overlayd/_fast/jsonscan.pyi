from typing_extensions import Buffer

def where_over(body: Buffer, most: int, longest: int) -> list[bytes] | None:
    """The keys, as they stand in the text, that lead to the place where `body` has more than `most` JSON values, or a
    text of more than `longest` bytes; None when there is no such place.

    A value counts one, and a list or an object one more than it holds.  Releases the GIL.
    """

def next_keys(body: Buffer, start: int, most: int) -> tuple[list[bytes], int]:
    """Up to `most` keys of the object that `body` is, as they stand in the text with their quotes, and where to look
    for more; that is -1 when there are none.

    start: 0, or what the last call returned.  `body` must be JSON.  Releases the GIL.
    """
