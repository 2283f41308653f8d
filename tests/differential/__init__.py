"""`mpconv convert` against `qemu-img convert`: random cases, run by both, compared, shrunk."""
