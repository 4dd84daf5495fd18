"""python -m leanattn info | support | demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m leanattn")
    commands = parser.add_subparsers(dest="command", required=True)
    info_parser = commands.add_parser("info", help="what is installed, what works here and what does not")
    info_parser.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("support", help="what decode supports on which device, as a Markdown table")
    # The demo reads its own arguments, --help among them.
    commands.add_parser("demo", help="decode a ragged batch and show who did what", add_help=False)
    arguments, rest = parser.parse_known_args(argv)

    if arguments.command == "demo":
        from leanattn import demo

        return demo.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    if arguments.command == "support":
        from leanattn import support_table

        print(support_table.markdown())
        return 0

    from leanattn import info

    print(info.as_json() if arguments.json else info.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
