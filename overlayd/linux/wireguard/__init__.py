"""WireGuard devices, in the kernel or by wireguard-go."""
