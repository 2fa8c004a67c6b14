"""Dispatching: who runs events, and when."""
