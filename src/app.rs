//! Floor 6: the only file that knows every room; it wires them from the configuration.
