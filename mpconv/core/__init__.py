"""One copy as a state machine: events in, actions out; the caller passes the time.

It decides what is leased, who may write, and what is durable. It has no sockets, clocks, files or logging.
"""
