"""What can be done with images: each job opens what it needs, runs a coordinator, and finishes.

It parses no command line and prints nothing: an observer hears what happens.
"""
