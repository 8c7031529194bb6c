"""Your flows: one a file, parents and children alike."""
