"""mpconv for programs: one coroutine for each job, with typed results. The commands run the same ones.

Images are named as on the command line, or by a Place. Every failure is an MpconvError, whose text is one line without
passwords. Signals are the program's own business. `copying`: what moves or reads all of an image, with worker
processes; `images`: what is told of images, without any. Programs take them from `mpconv` (mpconv/__init__.py), which
imports no more than is used.
"""
