"""Running events: runs, leases, workers and the dispatch modes."""
