"""What operators change in an inbox: pause, replay, discard, prune; the journal."""
