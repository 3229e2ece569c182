"""The page of `overlayctl web`: what this node holds, for a browser on the same machine."""
