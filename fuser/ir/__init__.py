"""Floor 0: the graph, its types, and what each operation means."""
