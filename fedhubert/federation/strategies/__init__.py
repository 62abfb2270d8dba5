"""What becomes of the clients' mean update: server optimisers, and strategies that see every update."""
