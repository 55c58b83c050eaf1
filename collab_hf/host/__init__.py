"""What is known of the host: its layers, what they read, its inputs and its private names."""
