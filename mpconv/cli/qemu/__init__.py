"""qemu-img's language: its option lists, its driver options, and its words for what it refuses.

It opens no image.
"""
