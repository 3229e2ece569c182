"""The contract's document and schema are those of the code; OVERLAYD_GOLDEN=write renews them."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from protocol_reference import HEADING, reference

from overlayd import wire
from overlayd.daemon.handlers import HANDLERS, QUICK
from overlayd.daemon.handlers.hello import ABILITIES
from overlayd.errors import RequestError
from overlayd.wire.schema import schema

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, SCHEMA = ROOT / "docs" / "protocol.md", ROOT / "docs" / "protocol.schema.json"
NO_SCHEMA_TELLS = {"port_float"}  # to JSON Schema 51820.0 is an integer
GOLDEN = sorted((ROOT / "tests" / "golden").glob("[ersb]*/*.json"))
WRITE = os.environ.get("OVERLAYD_GOLDEN") == "write"


def test_the_document_has_every_message() -> None:
    prose, heading, found = DOCUMENT.read_text().partition(HEADING)
    if WRITE:
        DOCUMENT.write_text(prose + reference())
        prose, heading, found = DOCUMENT.read_text().partition(HEADING)
    assert heading + found == reference()


def test_the_schema_beside_the_document_is_the_codes() -> None:
    made = json.dumps(schema(), indent=2) + "\n"
    if WRITE:
        SCHEMA.write_text(made)
    assert SCHEMA.read_text() == made


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_golden_frame_is_of_the_schema_and_every_bad_one_is_not(path: Path, validator: Any) -> None:
    frame = json.loads(path.read_text())
    frame = frame["frame"] if isinstance(frame["frame"], dict) else frame
    assert validator.is_valid(frame) == (path.parent.name != "bad" or path.stem in NO_SCHEMA_TELLS)


def test_a_later_version_may_add_keys(validator: Any) -> None:
    later = {"frame": "response", "id": 1, "response": {"result": "ok", "more": [1]}, "more": {}}
    assert validator.is_valid(later)


def test_the_document_names_every_code() -> None:
    text = DOCUMENT.read_text()
    codes = {each.code for each in [RequestError, *_below(RequestError)]}
    codes |= {"bad_request", "kernel", "disk", "too_large", "too_late", "stopping", "internal"}
    assert all(f"| `{code}` |" in text for code in codes)


def _below(kind: type[RequestError]) -> list[type[RequestError]]:
    ours = [each for each in kind.__subclasses__() if each.__module__ == "overlayd.errors"]
    return [*ours, *(deeper for each in ours for deeper in _below(each))]


def test_every_request_has_a_handler_and_every_ability_is_one_of_a_key() -> None:
    assert {*HANDLERS, *QUICK} == set(wire.Request.__args__)
    assert all("." in each for each in ABILITIES)
