"""The ground floor: the graph, its types, and what each operation means."""
