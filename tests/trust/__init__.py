"""What others can do to a site or to the server, each tried."""
