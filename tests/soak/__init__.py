"""Proof that every event answered 2xx has each effect exactly once.

``make soak`` runs it for minutes, ``tests/system/test_crashes.py`` a short form.
"""
