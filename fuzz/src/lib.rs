//! What the fuzz targets share: choices out of bytes, small models, and a count of memory.

pub mod feed;
pub mod memory;
pub mod tiny;
