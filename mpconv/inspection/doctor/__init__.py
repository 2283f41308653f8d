"""What a storage URL can do, and what is in the way: `mpconv doctor` (docs/doctor.md)."""
