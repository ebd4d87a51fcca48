//! Boards that are not here, as folders of their files; what nonsense in them does; and hours of a
//! Nano's life against a thermal model.

pub mod governor;
mod keeper;
mod readings;
mod simulation;
pub mod trees;
