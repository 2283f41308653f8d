"""The command. Until it is imported as far as it takes to say so, Ctrl-C ends it without a word."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mpconv.cli import run

if __name__ == "__main__":
    run()
