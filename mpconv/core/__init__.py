"""The state machines: plain values in, plain values out. No sockets, clocks, files or logging here."""
