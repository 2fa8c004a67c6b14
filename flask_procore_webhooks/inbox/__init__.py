"""The inbox: the only SQL of the package."""
