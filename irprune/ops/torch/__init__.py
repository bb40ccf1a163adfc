"""What is known of ATen's operators that takes torch to say."""
