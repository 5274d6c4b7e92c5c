"""Messages on sockets and guest ports, with their bounds."""
