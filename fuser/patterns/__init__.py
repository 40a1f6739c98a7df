"""Floor 1: what a graph means. Patterns read a graph and return typed regions; they never change anything."""
