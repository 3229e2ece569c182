"""Keeping the kernel as the state says: what was changed behind our back, who died, whose firewall drops."""
