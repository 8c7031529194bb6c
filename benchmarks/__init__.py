"""What child deployments cost, measured."""
