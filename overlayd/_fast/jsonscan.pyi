from typing_extensions import Buffer

def where_over(body: Buffer, most: int, longest: int) -> list[bytes] | None:
    """The keys, as they stand in the text, that lead to the place where `body` has more than `most` JSON values, or a
    text of more than `longest` bytes; None when there is no such place.

    A value counts one, and a list or an object one more than it holds.  Releases the GIL.
    """
