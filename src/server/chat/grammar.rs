//! Holds an answer to a family's form of tool calls, or to a schema.
//!
//! ```text
//! start: [thought] calls                a call is forced
//! start: [thought] (calls | answer)     calls as the model likes, else what fits a schema
//! start: calls, once a mark appears     calls as the model likes, else text
//! ```

use serde_json::{Map, Value, json};

use super::family::*;
use super::reasoning::{THINK_CLOSE, THINK_OPEN};
use super::tools::{Tool, Tools};
use crate::inference::{GrammarRequest, GrammarSpec, Tokenizer, Trigger};

/// White space between JSON's tokens: with no bound, a weak model writes nothing else.
const WHITE_SPACE: &str = r" |\n{1,2}[ \t]{0,20}";

/// Where an answer's reasoning stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thinking {
    /// There is none.
    No,
    /// The model may begin with it.
    May,
    /// The prompt has opened it.
    Opened,
}

/// Writes a grammar in Lark.
struct Lark<'a> {
    tokenizer: &'a Tokenizer,
    rules: String,
}

/// The grammar for tools and a schema; `None` if neither is there.
pub(super) fn for_chat(
    family: Family,
    tools: &Tools,
    schema: Option<&Value>,
    thinking: Thinking,
    tokenizer: &Tokenizer,
) -> Option<GrammarRequest> {
    let mut lark = Lark { tokenizer, rules: String::new() };
    if !tools.are_on() {
        let schema = schema?;
        if thinking == Thinking::No {
            let spec = match schema.as_object().is_some_and(Map::is_empty) {
                true => GrammarSpec::JsonObject,
                false => GrammarSpec::JsonSchema(schema.to_string()),
            };
            return Some(GrammarRequest { spec, triggers: Vec::new() });
        }
        lark.json("answer", schema.clone());
        return Some(lark.finish(thinking, "answer", Vec::new()));
    }
    if family == Family::Generic {
        lark.generic(tools, schema);
        return Some(lark.finish(thinking, "calls", Vec::new()));
    }
    lark.calls(family, tools);
    match schema {
        _ if tools.are_forced() => Some(lark.finish(thinking, "calls", Vec::new())),
        Some(schema) => {
            lark.json("answer", schema.clone());
            Some(lark.finish(thinking, "(calls | answer)", Vec::new()))
        }
        None => {
            let triggers = triggers(family, tokenizer);
            Some(lark.finish(Thinking::No, "calls", triggers))
        }
    }
}

impl Lark<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        self.rules.push_str(&format!("{name}: {body}\n"));
    }

    fn finish(mut self, thinking: Thinking, body: &str, triggers: Vec<Trigger>) -> GrammarRequest {
        let open = self.mark(THINK_OPEN);
        let start = match thinking {
            Thinking::No => format!("start: {body}\n"),
            Thinking::May => format!("start: ({open} thought)? {body}\n"),
            Thinking::Opened => format!("start: thought {body}\n"),
        };
        if thinking != Thinking::No {
            match self.control(THINK_CLOSE) {
                Some(close) => self.rule("thought", &format!("/(?s:.*)/ {close} BLANK")),
                None => {
                    self.rule("thought", "closed BLANK");
                    self.rules.push_str("closed[lazy]: /(?s:.*)<\\/think>/\n");
                }
            }
        }
        self.rules.push_str("BLANK: /[ \\n]{0,3}/\n");
        let spec = GrammarSpec::Lark(start + &self.rules);
        GrammarRequest { spec, triggers }
    }

    /// A mark that is a control token, as the grammar names it.
    fn control(&self, mark: &str) -> Option<String> {
        control_token(self.tokenizer, mark).map(|id| format!("<[{id}]>"))
    }

    /// A mark as the vocabulary has it: a control token, or text.
    fn mark(&self, mark: &str) -> String {
        self.control(mark).unwrap_or_else(|| quoted(mark))
    }

    /// A rule for what fits a schema.
    fn json(&mut self, name: &str, mut schema: Value) {
        if schema.as_object().is_some_and(Map::is_empty) {
            schema = json!({"type": "object"});
        }
        if let Value::Object(keys) = &mut schema {
            let options = json!({"whitespace_pattern": WHITE_SPACE, "coerce_one_of": true});
            keys.insert("x-guidance".into(), options);
        }
        self.rule(name, &format!("%json {schema}"));
    }

    /// The rule `calls`: one or, where that is welcome, several.
    fn calls(&mut self, family: Family, tools: &Tools) {
        let tools_on = tools.callable();
        let in_parallel = tools.in_parallel && family.calls_in_parallel();
        let repeat = |call: &str, between: &str| match in_parallel {
            true => format!("{call} ({between} {call})*"),
            false => call.to_owned(),
        };
        match family {
            Family::Hermes => {
                let (open, close) = (self.mark(HERMES_OPEN), self.mark(HERMES_CLOSE));
                self.objects(&tools_on, "arguments");
                self.rule("call", &format!("{open} BLANK object BLANK {close}"));
                self.rule("calls", &repeat("call", "BLANK"));
            }
            Family::Llama3 => {
                self.objects(&tools_on, "parameters");
                self.rule("calls", "object");
            }
            Family::Mistral { is_named: false } => {
                let open = self.mark(MISTRAL_OPEN);
                self.objects(&tools_on, "arguments");
                let list = repeat("object", r#""," BLANK"#);
                self.rule("calls", &format!(r#"{open} BLANK "[" {list} "]""#));
            }
            Family::Mistral { is_named: true } => {
                let (open, args) = (self.mark(MISTRAL_OPEN), self.mark(MISTRAL_ARGS));
                self.named(&tools_on, |name, n| format!("{open} {} {args} args_{n}", quoted(name)));
                self.rule("calls", &repeat("call", "BLANK"));
            }
            Family::DeepSeek { is_fenced } => self.deepseek(&tools_on, is_fenced, &repeat),
            Family::Plain | Family::Generic => {}
        }
    }

    fn deepseek(
        &mut self,
        tools: &[&Tool],
        is_fenced: bool,
        repeat: &dyn Fn(&str, &str) -> String,
    ) {
        let [list_open, open, sep, close, list_close] =
            [DEEPSEEK_LIST_OPEN, DEEPSEEK_OPEN, DEEPSEEK_SEP, DEEPSEEK_CLOSE, DEEPSEEK_LIST_CLOSE]
                .map(|mark| self.mark(mark));
        self.named(tools, |name, n| match is_fenced {
            true => {
                let head = quoted(&format!("{name}\n```json\n"));
                let tail = quoted("\n```");
                format!(r#"{open} "function" {sep} {head} args_{n} {tail} {close}"#)
            }
            false => format!("{open} {} {sep} args_{n} {close}", quoted(name)),
        });
        let list = repeat("call", "BLANK");
        self.rule("calls", &format!("{list_open}? BLANK {list} BLANK {list_close}"));
    }

    /// The rule `call` for families that write names outside of JSON.
    fn named(&mut self, tools: &[&Tool], body: impl Fn(&str, usize) -> String) {
        for (n, tool) in tools.iter().enumerate() {
            self.json(&format!("args_{n}"), closed(&tool.parameters));
        }
        let calls = tools.iter().enumerate().map(|(n, tool)| body(&tool.name, n));
        let calls = calls.collect::<Vec<_>>().join("\n  | ");
        self.rule("call", &calls);
    }

    /// The rule `object`: a call of any of the tools as JSON.
    fn objects(&mut self, tools: &[&Tool], arguments: &str) {
        for (n, tool) in tools.iter().enumerate() {
            self.json(&format!("object_{n}"), call_schema(tool, arguments));
        }
        let names: Vec<String> = (0..tools.len()).map(|n| format!("object_{n}")).collect();
        self.rule("object", &names.join(" | "));
    }

    /// The rule `calls` of the generic form, with its other answer where a call is not forced.
    fn generic(&mut self, tools: &Tools, schema: Option<&Value>) {
        self.objects(&tools.callable(), "arguments");
        let list = match tools.in_parallel {
            true => {
                r#""{" BLANK "\"tool_calls\":" BLANK "[" object ("," BLANK object)* "]" BLANK "}""#
            }
            false => r#""{" BLANK "\"tool_call\":" BLANK object BLANK "}""#,
        };
        if tools.are_forced() {
            return self.rule("calls", list);
        }
        let any_text = json!({"type": "string"});
        self.json("response", schema.unwrap_or(&any_text).clone());
        let answer = r#""{" BLANK "\"response\":" BLANK response BLANK "}""#;
        self.rule("calls", &format!("{list}\n  | {answer}"));
    }
}

/// What sets the grammar of a family off.
fn triggers(family: Family, tokenizer: &Tokenizer) -> Vec<Trigger> {
    let marks: &[&str] = match family {
        Family::Hermes => &[HERMES_OPEN],
        Family::Mistral { .. } => &[MISTRAL_OPEN],
        Family::DeepSeek { .. } => &[DEEPSEEK_LIST_OPEN, DEEPSEEK_OPEN],
        // An object with a name, as the whole answer.
        _ => return vec![Trigger::Pattern(r#"^\s*(\{[ \n]?"name")"#.into())],
    };
    let trigger = |mark: &&str| match control_token(tokenizer, mark) {
        Some(id) => Trigger::Token(id),
        None => Trigger::Word((*mark).to_owned()),
    };
    marks.iter().map(trigger).collect()
}

/// The control token of a mark: one that texts do not show.
pub(super) fn control_token(tokenizer: &Tokenizer, mark: &str) -> Option<u32> {
    tokenizer.token_id(mark).filter(|&id| tokenizer.token_bytes(id, false).is_empty())
}

/// `{"name": the tool's, <arguments>: what fits its schema}`.
fn call_schema(tool: &Tool, arguments: &str) -> Value {
    let mut parameters = closed(&tool.parameters);
    let mut schema = json!({
        "type": "object",
        "properties": { "name": { "const": tool.name } },
        "required": ["name", arguments],
        "additionalProperties": false,
    });
    // References start at the root, so what they name moves there.
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = parameters.as_object_mut().and_then(|keys| keys.remove(key)) {
            schema[key] = definitions;
        }
    }
    schema["properties"][arguments] = parameters;
    schema
}

/// Arguments that the tool does not name would be noise.
fn closed(parameters: &Value) -> Value {
    let mut parameters = parameters.clone();
    if let Value::Object(keys) = &mut parameters
        && keys.contains_key("properties")
        && !keys.contains_key("additionalProperties")
        && !keys.contains_key("patternProperties")
    {
        keys.insert("additionalProperties".into(), false.into());
    }
    parameters
}

/// A text in Lark.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
