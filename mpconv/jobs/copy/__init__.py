"""Copies of one image: to one target or several, with a journal or without. Other rooms move the bytes."""
