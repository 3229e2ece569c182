"""The reference of settings is that of the parser; OVERLAYD_GOLDEN=write renews it."""

import os
from pathlib import Path

import msgspec
from settings_reference import reference

from overlayd.daemon.config import Config, parser

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def test_the_document_is_as_the_parser_has_it() -> None:
    if os.environ.get("OVERLAYD_GOLDEN") == "write":
        DOCUMENT.write_text(reference())
    assert DOCUMENT.read_text() == reference()


def test_every_setting_is_an_option() -> None:
    options = {action.dest for action in parser()._actions}
    assert {field.name for field in msgspec.structs.fields(Config)} <= options
