"""Dispatching: the workers and dispatch modes that run events."""
