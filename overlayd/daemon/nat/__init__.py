"""NAT traversal: where this node may be reached, how it reaches its peers, and the relay that it offers."""
