"""Proof that nothing answered 2xx is lost, and that no effect happens twice.

``make soak`` runs it for some minutes, ``tests/system/test_crashes.py`` in short.
"""
