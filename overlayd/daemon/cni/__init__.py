"""Container runtimes, which come by CNI: the socket of their shim, and what each command does."""
