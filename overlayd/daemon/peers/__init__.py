"""What is known of peers while they live: their health, where host names point, when edge peers and grants end."""
