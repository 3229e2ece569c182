"""What a monitoring system asks: measurements, and whether the daemon lives and can serve.  Off unless configured."""
