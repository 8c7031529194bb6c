"""Your flows: one per file, parents and children alike."""
