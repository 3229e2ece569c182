"""The one way a change takes: decision, journal, kernel, answer.

Imports no other room of the daemon.
"""
