"""What can be told of an image without copying it: its size, where its data lies, how much room a copy takes.

It prints as qemu-img 7.2 does, to the byte; lines come without their ends. It starts no workers.
"""
