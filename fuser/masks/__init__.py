"""What masks mean: known ones by their value, the others by how they are made."""
