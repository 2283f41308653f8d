"""What can be told of an image without copying it: its size, where its data lies, how much room a copy takes.

All of it as qemu-img 7.2 prints it, to the byte; lines come without their ends.
"""
