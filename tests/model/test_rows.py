"""Rows as they are kept."""

import pytest

from overlayd.errors import StateError
from overlayd.model import rows


def test_a_row_of_a_newer_overlayd_is_refused_not_dropped():
    with pytest.raises(StateError, match="newer"):
        rows.decode(("comets", "x"), b"{}")
    with pytest.raises(StateError, match="service/web"):
        rows.decode(("service", "web"), b'{"name": 7}')
