"""The list of plugins that container runtimes read."""

import json
from typing import Any

import pytest

from overlayd.proto.cni import VERSIONS, CniError
from overlayd.proto.cni_conflist import conflist, read


def test_our_plugin_comes_first_and_older_runtimes_can_read_it() -> None:
    found = json.loads(conflist("overlay", "slice", ["portmap", "bandwidth"]))
    assert [plugin["type"] for plugin in found["plugins"]] == ["overlayd-cni", "portmap", "bandwidth"]
    assert found["cniVersion"] == "1.0.0"
    assert found["cniVersions"] == list(VERSIONS)
    assert found["plugins"][0]["capabilities"]["ips"] is True


def test_only_versions_that_all_plugins_speak() -> None:
    found = json.loads(conflist("overlay", "10.200.1.0/24", ["portmap"], ["0.2.0", "0.3.1", "0.4.0"]))
    assert (found["cniVersion"], found["cniVersions"]) == ("0.4.0", ["0.3.1", "0.4.0"])
    with pytest.raises(CniError, match="and overlayd-cni none of these"):
        conflist("overlay", "slice", [], ["0.2.0"])


def test_what_was_written_is_read() -> None:
    asked = read(conflist("blue", "10.200.1.0/24", []).decode())
    assert (asked.network, asked.service, str(asked.subnet)) == ("blue", "blue", "10.200.1.0/24")


def test_a_name_that_is_none() -> None:
    with pytest.raises(CniError, match=r"'\.\./x' is not the name of a network"):
        conflist("../x", "slice", [])


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (6, "{"),
        (6, "[]"),
        (7, {"plugins": []}),
        (7, {"plugins": "x"}),
        (7, {"plugins": ["x"]}),
        (7, {"plugins": [{"type": "bridge"}, {"type": "overlayd-cni"}], "name": "overlay"}),
        (7, {"plugins": [{"type": "overlayd-cni"}]}),
        (2, {"plugins": [{"type": "overlayd-cni", "bridge": "x"}], "name": "overlay"}),
    ],
)
def test_a_list_that_is_none_of_ours(code: int, found: Any) -> None:
    with pytest.raises(CniError) as caught:
        read(found if isinstance(found, str) else json.dumps(found))
    assert caught.value.code == code
