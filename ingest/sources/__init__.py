"""Where artifacts and events come from: one file each."""
