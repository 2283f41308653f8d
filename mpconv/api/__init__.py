"""What programs call: one coroutine for each kind of job, with typed results.

It names images as the command line does, or by a Place. Every failure is an MpconvError, whose text is one line without
passwords. It handles no signals: these belong to the program. Programs take the names from mpconv/__init__.py,
which imports no more than is used.
"""
