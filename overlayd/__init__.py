"""overlayd: the per-node daemon that owns a container cluster's overlay network."""

__version__ = "0.1.0"
