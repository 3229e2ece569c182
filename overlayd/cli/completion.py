"""What makes a shell complete the words of `overlayctl`.

Owns: the scripts of bash, zsh and fish, made of the table of commands.  Must not know: what commands do.
"""

from collections.abc import Iterator, Sequence

from overlayd.cli.arguments import COMMANDS
from overlayd.cli.call import operations
from overlayd.cli.words import Command, Option

_GLOBAL = ("--socket", "--timeout", "--help")


def script(shell: str) -> str:
    """shell: bash, zsh or fish."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _bash() -> str:
    cases = "\n".join(f"    {_quoted(path)}) words={_quoted(' '.join(words))} ;;" for path, words in _after())
    values = "\n".join(
        f"    {' | '.join(_quoted(f'{path} {name}') for name in names)}) words={_quoted(' '.join(choices))}; break ;;"
        for path, names, choices in _choices()
    )
    first = " ".join([each.word for each in COMMANDS] + ["--socket", "--timeout", "--version", "--help"])
    return f"""\
# bash completion of overlayctl; made by: overlayctl completion bash
_overlayctl() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}" path= words= word skip=
  case "$previous" in
    --socket | --identity-file) COMPREPLY=($(compgen -f -- "$current")); return ;;
    --data-dir) COMPREPLY=($(compgen -d -- "$current")); return ;;
  esac
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [ -n "$skip" ]; then
      skip=
      if [ "$word" = = ]; then skip=yes; fi
      continue
    fi
    case "$word" in
    {" | ".join(_valued())}) skip=yes ;;
    -*) ;;
    *) path="${{path:+$path }}$word" ;;
    esac
  done
  words={_quoted(first)}
  while [ -n "$path" ]; do
    case "$path $previous" in
{values}
    esac
    case "$path" in
{cases}
    *' '*) path="${{path% *}}"; continue ;;
    *) words= ;;
    esac
    break
  done
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _overlayctl overlayctl
"""


def _zsh() -> str:
    first = "\n".join(f"    {_described(each.word, each.summary)}" for each in COMMANDS)
    cases = "\n".join(f"    {_quoted(path)}) compadd -- {' '.join(words)} ;;" for path, words in _after())
    return f"""\
#compdef overlayctl
# made by: overlayctl completion zsh
_overlayctl() {{
  local -a commands before
  commands=(
{first}
  )
  before=(${{${{words[2,CURRENT-1]}}:#-*}})
  if (( ! $#before )); then
    _describe command commands
    return
  fi
  case "$before" in
{cases}
  esac
}}
# As a file of fpath it is run to complete, and the first time defines itself; sourced, it is registered.
if [[ "${{funcstack[1]}}" == _overlayctl ]]; then _overlayctl "$@"; else compdef _overlayctl overlayctl; fi
"""


def _fish() -> str:
    lines = ["# fish completion of overlayctl; made by: overlayctl completion fish", "complete -c overlayctl -f"]
    for each in COMMANDS:
        lines.append(f"complete -c overlayctl -n __fish_use_subcommand -a {each.word} -d {_quoted(each.summary)}")
        for action in each.actions:
            seen = f"'__fish_seen_subcommand_from {each.word}'"
            lines.append(f"complete -c overlayctl -n {seen} -a {action.word} -d {_quoted(action.summary)}")
        options = [*each.options, *(option for action in each.actions for option in action.options)]
        for name, option in _named(options):
            seen = f"'__fish_seen_subcommand_from {each.word}'"
            choices = option.settings.get("choices")
            values = f" -x -a {_quoted(' '.join(choices))}" if choices else ""
            lines.append(f"complete -c overlayctl -n {seen} -l {name.removeprefix('--')}{values}")
        for option in each.options:
            if option.settings.get("choices") and not option.names[0].startswith("-"):
                seen = f"'__fish_seen_subcommand_from {each.word}'"
                lines.append(f"complete -c overlayctl -n {seen} -a {_quoted(' '.join(option.settings['choices']))}")
    lines += ["complete -c overlayctl -l socket -r", "complete -c overlayctl -l timeout -x"]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _after() -> Iterator[tuple[str, list[str]]]:
    """What may come after each command's words."""
    for each in COMMANDS:
        yield each.word, [*(action.word for action in each.actions), *_words(each)]
        for action in each.actions:
            yield f"{each.word} {action.word}", _words(action)


def _choices() -> Iterator[tuple[str, tuple[str, ...], Sequence[str]]]:
    """The options that take one of a few words, and these, by the words of their command."""
    for each in COMMANDS:
        for path, command in ((each.word, each), *((f"{each.word} {action.word}", action) for action in each.actions)):
            for option in command.options:
                if option.names[0].startswith("-") and (choices := option.settings.get("choices")):
                    yield path, option.names, [str(choice) for choice in choices]


def _valued() -> list[str]:
    """The options behind which a value stands."""
    commands = [*COMMANDS, *(action for each in COMMANDS for action in each.actions)]
    found = {"--socket", "--timeout"}
    for option in (option for each in commands for option in each.options):
        if option.settings.get("action") in (None, "append"):
            found |= {name for name in option.names if name.startswith("-")}
    return sorted(found)


def _words(command: Command) -> list[str]:
    """The options of a command, and the values of its arguments where they are of a few."""
    words = [name for name, _ in _named(command.options)]
    if command.word == "call":
        words += operations()
    for option in command.options:
        if not option.names[0].startswith("-"):
            words += option.settings.get("choices") or ()
    return [*words, *_GLOBAL]


def _named(options: Sequence[Option]) -> Iterator[tuple[str, Option]]:
    for option in options:
        for name in option.names:
            if name.startswith("--"):
                yield name, option


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _described(word: str, summary: str) -> str:
    return _quoted(f"{word}:{summary}")
