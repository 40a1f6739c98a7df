"""What a graph means: patterns read a graph and return typed regions; they never change anything."""
