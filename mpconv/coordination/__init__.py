"""The parts of the coordinator: rosters and groups of workers, the scan of the source, the places of clusters, signals.

They do what the state machine (core) asks for, and tell it what happened. They decide neither who may write nor what
counts as done.
"""
