"""What surrounds the service in production."""
