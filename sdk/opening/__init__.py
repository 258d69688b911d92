"""From an address to an open function: the ways in, the private emulator, the list of devices."""
