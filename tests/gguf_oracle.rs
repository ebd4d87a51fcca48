//! gguf-rs as the second opinion on our GGUF reader. Run with `--features gguf-oracle`.
