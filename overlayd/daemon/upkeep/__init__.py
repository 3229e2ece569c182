"""Keeping the kernel as the state says: what others changed, which containers died, and whose firewall drops."""
