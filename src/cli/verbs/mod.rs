//! The verbs: each its options and what it does with them.

pub mod bench;
pub mod cache;
pub mod chat;
pub mod client;
pub mod completions;
pub mod config;
pub mod doctor;
pub mod export;
pub mod generate;
pub mod hub;
pub mod inspect;
pub mod jobs;
pub mod key;
pub mod models;
pub mod monitor;
pub mod pair;
pub mod perplexity;
pub mod power;
pub mod pull;
pub mod quantize;
pub mod serve;
pub mod setup;
pub mod setup_model;
pub mod tokenize;
pub mod tune;
pub mod warm;
