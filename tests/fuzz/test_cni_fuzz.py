"""A hundred thousand damaged CNI calls: each is taken or refused in the specification's form, whatever it holds."""

import json
import random
from typing import Any

from overlayd.proto import cni, cni_network
from overlayd.proto.cni import CniError, Environment

ROUNDS = 100_000

CONFIG: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "overlay",
    "type": "overlayd-cni",
    "service": "pods",
    "subnet": "slice",
    "isolation": "none",
    "join_global": False,
    "dns": {"nameservers": ["10.0.0.53"]},
    "args": {"cni": {"ips": ["10.200.3.9"]}},
    "runtimeConfig": {
        "ips": ["10.200.3.9/24"],
        "mac": "02:00:0a:c8:03:09",
        "dns": {"servers": ["10.0.0.1"], "searches": [], "options": []},
        "aliases": {"overlay": ["web"]},
        "io.kubernetes.cri.pod-annotations": {"overlayd.io/isolation": "blue"},
    },
    "prevResult": {"interfaces": [{"name": "zl-c0"}], "ips": [{"address": "10.200.3.9/24", "interface": 1}]},
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
}
ENVIRONMENT = {
    "container_id": "b2f7c1d09e",
    "netns": "/var/run/netns/cni-1",
    "ifname": "eth0",
    "args": "IgnoreUnknown=1;IP=10.200.3.9;MAC=02:00:0a:c8:03:09;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop",
    "path": "/opt/cni/bin",
}
STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "a" * 300,
    "\x00",
    "é",
    "../x",
    "10.0.0.1",
    [],
    {},
    [[]],
    [None],
]


def values(rng: random.Random, value: Any) -> Any:
    """The value with a part of it gone, repeated or replaced by something strange."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice([*value])
        changed = dict(value)
        match rng.randrange(4):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["x", key.upper(), key[:-1], "ipam"])] = changed.pop(key)
            case _:
                changed[key] = values(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        return [values(rng, value[0]), *value]
    return rng.choice(STRANGE)


def text(rng: random.Random, written: str) -> str:
    """The text with some characters changed, gone or repeated."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(written) + 1)
        piece = rng.choice(["", "\x00", '"', "}", "\\", ";", "=", "/", "\n", "é", "\\ud800", written[at : at + 9] * 3])
        written = written[:at] + piece + written[at + rng.randrange(3) :]
    return written


def test_damaged_calls_get_an_answer_of_the_specifications_form() -> None:
    rng = random.Random(17)
    seen: dict[object, int] = {}
    for _ in range(ROUNDS):
        command = rng.choice([*cni.COMMANDS, "ADD", "ADD", "VERSION"])
        config = dict(CONFIG)
        if command == "ADD" and rng.random() < 0.9:
            del config["prevResult"]
        if rng.random() < 0.9:
            config = values(rng, config)
        written = json.dumps(config)
        if rng.random() < 0.3:
            written = text(rng, written)
        given = dict(ENVIRONMENT)
        if rng.random() < 0.3:
            key = rng.choice([*given])
            given[key] = text(rng, given[key])
        body = json.dumps({"cni": {"command": command, **given}, "config": written}).encode()
        call = cni.decode(body)
        try:
            if command == "DEL":
                cni.require_call(call.cni, "")
                seen["deleted"] = seen.get("deleted", 0) + 1
            else:
                asked = cni_network.parse(call.cni, call.config)
                assert asked.version in cni.VERSIONS
                assert asked.subnet is None or asked.subnet == "slice" or "/" in str(asked.subnet)
                seen["taken"] = seen.get("taken", 0) + 1
        except CniError as error:
            answer = cni.failure(error, cni_network.version_of(call.config))
            told = json.loads(answer.stdout)
            assert answer.exit == 1
            assert told["cniVersion"] in cni.VERSIONS
            assert told["code"] in (1, 2, 4, 6, 7)
            assert told["msg"]
            assert set(told) <= {"cniVersion", "code", "msg", "details"}
            seen[told["code"]] = seen.get(told["code"], 0) + 1
    assert set(seen) == {"deleted", "taken", 1, 2, 4, 6, 7}
    assert min(seen.values()) > ROUNDS // 500  # none is met by accident only


def test_the_environment_of_a_call_is_all_that_is_taken() -> None:
    assert set(ENVIRONMENT) | {"command"} == set(Environment.__struct_fields__)
