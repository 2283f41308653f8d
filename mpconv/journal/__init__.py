"""What of a copy is done and durable, kept in a file, so that the copy can go on after its command has ended.

It records what it is told. It neither flushes targets nor decides what is durable; passwords are not kept.
"""
