"""What is known of peers while they live: their health, where their host names point, when edge peers expire."""
