"""The server's side of a run: its session, record, resuming, forking."""
