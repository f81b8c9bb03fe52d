"""Order books that others published, beside ours: the same steps, the same trades, orders a second."""
