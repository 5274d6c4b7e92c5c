"""A switch: Ethernet for a coalition of domains in which every pair may talk."""
