//! Whole tasks of realistic sizes: what a person waits for.

use super::predicted::Predicted;

/// A prompt and an answer of the sizes that editors and agents send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Name in reports.
    pub name: &'static str,
    /// Tokens of the prompt, none of them cached.
    pub n_prompt: usize,
    /// Tokens of the answer.
    pub n_predict: usize,
}

impl Task {
    /// Seconds until the last token at such rates.
    pub fn predict(&self, rates: &Predicted) -> f64 {
        let rest = self.n_predict.saturating_sub(1) as f64;
        self.n_prompt as f64 / rates.prefill + rest / rates.decode
    }
}

/// `--task code_generation`: the sizes follow what editor plug-ins send by default (a completion
/// gets about 1,000 tokens around the cursor and answers with a line or two) and what a chat about
/// one file takes.
pub const CODE_GENERATION: [Task; 4] = [
    Task { name: "complete a line", n_prompt: 1024, n_predict: 32 },
    Task { name: "write a function", n_prompt: 256, n_predict: 192 },
    Task { name: "explain a file", n_prompt: 1536, n_predict: 256 },
    Task { name: "write tests for a file", n_prompt: 2048, n_predict: 384 },
];

/// Tasks by the name of their group.
pub fn find(name: &str) -> Option<&'static [Task]> {
    (name.replace('-', "_") == "code_generation").then_some(CODE_GENERATION.as_slice())
}
