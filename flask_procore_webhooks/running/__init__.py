"""Running events: who runs an event, and when."""
