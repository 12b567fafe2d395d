"""Write docs/commands.md from the parser of `toast`, so that page and program cannot differ: a test compares them."""

import argparse
from pathlib import Path

from toastlib.cli import _parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
HEAD = """\
<!-- Written by `python scripts/command_page.py`: change the program, and write the page anew. -->
# Command line

All commands of `toast` and all their arguments; `toast COMMAND --help` prints the same. `toast` lies in `.venv/bin`.
[Make it smaller](howto/smaller.md) explains `toast approximate`, and [Many runs](howto/runs.md) `toast run`, `study`,
`sweep`, `status` and `collect`.

"""


def command_page(parser: argparse.ArgumentParser | None = None) -> str:
    """Markdown: a list of the commands, then for each a table of its arguments."""
    parser = parser or _parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    listed = [f"- [`toast {name}`](#toast-{name}): {sub.description}" for name, sub in commands.choices.items()]
    parts = ["\n".join(listed), *(section(name, sub) for name, sub in commands.choices.items())]
    return HEAD + "\n\n".join(parts) + "\n"


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """One command."""
    rows = [row(parser, action) for action in parser._actions]
    table = "\n".join(["| argument | meaning |", "|---|---|", *rows])
    return f"## toast {name}\n\n{parser.description}\n\n{table}"


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One argument, with its help as `toast COMMAND --help` prints it."""
    value = "" if action.nargs == 0 else parser._get_formatter()._format_args(action, action.dest.upper())
    names = [" ".join(filter(None, (option, value))) for option in action.option_strings]
    names = names or [action.metavar or action.dest]
    text = parser._get_formatter()._expand_help(action)
    said = [text, "required" if action.required and action.option_strings else ""]
    cells = [", ".join(f"`{name}`" for name in names), "; ".join(filter(None, said))]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(command_page(), encoding="utf-8")
