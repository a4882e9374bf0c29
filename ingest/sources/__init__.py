"""Where artifacts and events come from: one file each. `feed` is what those have in common that are fetched."""
