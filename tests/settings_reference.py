"""docs/settings.md, made of the parser and the settings' own types.

Owns: its form.  Must not know: whether the document is as it is made (`test_settings_reference`).
"""

import argparse

import msgspec

from overlayd.daemon.config import CONFIG_FILE, Config, parser

HEAD = f"""\
# Settings of overlayd

Made of the parser (`tests/settings_reference.py`). Each setting can be given on the command line, in the environment,
or in the file `{CONFIG_FILE}` (TOML; `--config` names another), in this order: the first one that has it
counts. Lists are repeated options, commas in the environment, arrays in the file. A key that the file should not have
is an error.
"""


def reference() -> str:
    """All of it."""
    fields = {field.name: field for field in msgspec.structs.fields(Config)}
    settings, once = [], []
    for action in parser()._actions:
        if action.dest in ("help", "version"):
            continue
        (settings if action.dest in fields else once).append(action)
    lines = [HEAD, "| option | in the file | in the environment | meaning |", "|---|---|---|---|"]
    for action in settings:
        field = fields[action.dest]
        variable = f"OVERLAYD_{field.name.upper()}"
        cells = (_option(action), f"`{field.encode_name}`", f"`{variable}`", _meaning(action))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "On the command line alone:", "", "| option | meaning |", "|---|---|"]
    lines += [f"| {_option(action)} | {_meaning(action)} |" for action in once]
    return "\n".join(lines) + "\n"


def _option(action: argparse.Action) -> str:
    (name,) = action.option_strings
    if action.nargs == 0:
        return f"`{name}`"
    value = str(action.metavar or "|".join(map(str, action.choices or ())))
    return f"`{name} {value}`".replace("|", "\\|")


def _meaning(action: argparse.Action) -> str:
    return str(action.help).replace("|", "\\|")
