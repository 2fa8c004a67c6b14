"""Fuzzing: any bytes, guided by coverage, into each part that reads what others send.

``make check`` runs it for seconds, ``make soak`` for minutes. Atheris guides the inputs
by coverage where it is installed; otherwise they are random changes of the seeds.
"""
