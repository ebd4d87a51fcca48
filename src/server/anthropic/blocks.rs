//! What a model says, as content blocks: thoughts, texts, uses of tools, one after the other.

use serde_json::{Value, json};

use crate::server::chat::{Delta, Parser};

/// A step in the life of the content.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A block begins.
    Start(Value),
    /// The block grows.
    Delta(Value),
    /// The block is whole.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
    Tool,
}

/// Blocks out of an answer's text.
pub(super) struct Blocks {
    parser: Parser,
    open: Option<Open>,
}

impl Blocks {
    /// Of an answer that `parser` reads.
    pub fn new(parser: Parser) -> Blocks {
        Blocks { parser, open: None }
    }

    /// Takes more of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Change> {
        let deltas = self.parser.push(text);
        let mut changes = Vec::new();
        self.read(deltas, &mut changes);
        changes
    }

    /// Takes the end.
    pub fn finish(&mut self) -> Vec<Change> {
        let deltas = self.parser.finish();
        let mut changes = Vec::new();
        self.read(deltas, &mut changes);
        self.close(&mut changes);
        changes
    }

    /// Whether a tool was called.
    pub fn has_calls(&self) -> bool {
        self.parser.n_calls() > 0
    }

    fn read(&mut self, deltas: Vec<Delta>, changes: &mut Vec<Change>) {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => {
                    let start = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.open(Open::Thinking, start, changes);
                    let delta = json!({"type": "thinking_delta", "thinking": text});
                    changes.push(Change::Delta(delta));
                }
                Delta::Content(text) => {
                    self.open(Open::Text, json!({"type": "text", "text": ""}), changes);
                    changes.push(Change::Delta(json!({"type": "text_delta", "text": text})));
                }
                Delta::Call { id, name, .. } => {
                    self.close(changes);
                    let start = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    self.open(Open::Tool, start, changes);
                }
                Delta::Args { text, .. } if self.open == Some(Open::Tool) => {
                    let delta = json!({"type": "input_json_delta", "partial_json": text});
                    changes.push(Change::Delta(delta));
                }
                Delta::Args { .. } => {}
            }
        }
    }

    fn open(&mut self, kind: Open, start: Value, changes: &mut Vec<Change>) {
        if self.open != Some(kind) {
            self.close(changes);
            self.open = Some(kind);
            changes.push(Change::Start(start));
        }
    }

    fn close(&mut self, changes: &mut Vec<Change>) {
        if self.open.take().is_some() {
            changes.push(Change::Stop);
        }
    }
}

/// The blocks that changes come to.
pub(super) fn whole(changes: Vec<Change>) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut input = String::new();
    for change in changes {
        match (change, blocks.last_mut()) {
            (Change::Start(block), _) => blocks.push(block),
            (Change::Delta(delta), Some(block)) => {
                for name in ["text", "thinking"] {
                    if let (Some(more), Some(Value::String(text))) =
                        (delta[name].as_str(), block.get_mut(name))
                    {
                        text.push_str(more);
                    }
                }
                input.push_str(delta["partial_json"].as_str().unwrap_or_default());
            }
            (Change::Stop, Some(block)) if block["type"] == "tool_use" => {
                // Arguments that were cut off are no object; the reason of the stop says so.
                let parsed = serde_json::from_str(&input).ok().filter(Value::is_object);
                block["input"] = parsed.unwrap_or_else(|| json!({}));
                input.clear();
            }
            _ => {}
        }
    }
    blocks
}
