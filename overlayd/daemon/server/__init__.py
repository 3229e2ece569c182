"""The socket: who may connect, whose turn it is, and what identifies the process that serves it."""
