"""The command `kvstore`, also as `python -m kvstore`.

It takes half a second to load on a busy machine. An interrupt then must end it without a word, so this module
imports nothing before it has seen to that, and neither does the package (`kvstore/__init__.py`).
"""

import signal


def main() -> None:
    """Run the command; ends the process with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, and stays so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kvstore.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
