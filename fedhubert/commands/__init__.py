"""The verbs of the command line, one module each: flags, words and tables; the work is done
elsewhere."""
