"""A second reader of what Prometheus reads (text format 0.0.4), as strict as the format is written down."""

import re

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def parse(text: str) -> list[tuple[str, dict[str, str], float]]:
    """The samples of a text."""
    found = []
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("#"):
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        labels = {name: re.sub(r'\\[\\n"]', _plain, value) for name, value in LABEL.findall(match[2] or "")}
        found.append((match[1], labels, float(match[3])))
    return found


def _plain(escape: re.Match[str]) -> str:
    return "\n" if escape[0] == "\\n" else escape[0][1]
