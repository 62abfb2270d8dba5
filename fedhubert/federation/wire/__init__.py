"""What crosses between server and sites: messages, the arrays in them, and the grid that carries
them."""
