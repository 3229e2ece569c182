"""The name server: queries in, answers or forwarded queries out."""
