"""Simulator of Procore's bursts: what each option set of ``on(...)`` costs and leaves.

``python -m bursts`` plays every scenario and prints a table in Markdown;
``tests/system/test_bursts.py`` asserts what each option set promises.
"""
