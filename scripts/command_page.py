"""Write the page of all commands from the parser of `toast`, so that page and program cannot differ.

The site's build calls `command_page`; to read it: ``python scripts/command_page.py``.
"""

import argparse

from toastlib.cli import _parser


def command_page(parser: argparse.ArgumentParser | None = None) -> str:
    """Markdown: a list of the commands, then for each its usage and a table of its arguments."""
    parser = parser or _parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    listed = [f"- [`toast {name}`](#toast-{name}): {sub.description}" for name, sub in commands.choices.items()]
    return "\n\n".join(["\n".join(listed), *(section(name, sub) for name, sub in commands.choices.items())]) + "\n"


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """One command."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    rows = [row(parser, action) for action in parser._actions]
    table = "\n".join(["| argument | meaning |", "|---|---|", *rows])
    heading = f"## toast {name}"
    return f"{heading}\n\n{parser.description}\n\n```text\n{parser.format_usage()}```\n\n{table}"


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
    print(command_page())
