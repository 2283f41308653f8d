"""Worker processes: they own the storage connections and move the bytes."""
