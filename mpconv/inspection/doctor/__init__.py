"""What a storage URL can do, and what is in the way: `mpconv doctor` (docs/doctor.md).

It only reads, unless --write-test names a target to overwrite. It says what to do, and changes no server.
"""
