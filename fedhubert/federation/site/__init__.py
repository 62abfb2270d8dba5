"""The site's side: what a node does with each message, and its audit log."""
