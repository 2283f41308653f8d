"""Values that every other room uses: bytes, ranges, places, errors. No I/O."""
