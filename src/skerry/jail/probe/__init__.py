"""What tries a jail from inside before anything starts; it confines nothing itself."""
