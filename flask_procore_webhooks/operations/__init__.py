"""What operators do with an inbox: numbers; pause, replay, discard, prune; journal."""
