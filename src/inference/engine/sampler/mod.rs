//! The sampling chain.
