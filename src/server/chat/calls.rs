//! A call of a tool as a JSON object, read while it comes: `{"name": ..., "arguments": ...}`.
//!
//! The arguments are passed on as the model writes them, so they stream. Those that come before
//! the name wait for it.

use super::json::{ObjectWalk, Step, StringText, ValueScan, Walk};

/// What is known of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A call begins.
    Name(String),
    /// More of its arguments.
    Args(String),
    /// Text that is part of no call.
    Text(String),
}

/// Adds a part; text and arguments grow.
pub(super) fn add(out: &mut Vec<Part>, part: Part) {
    match (out.last_mut(), part) {
        (Some(Part::Args(last)), Part::Args(more)) => last.push_str(&more),
        (Some(Part::Text(last)), Part::Text(more)) => last.push_str(&more),
        (_, part) => out.push(part),
    }
}

/// Reads one call.
#[derive(Clone, Debug, Default)]
pub(super) struct CallReader {
    walk: ObjectWalk,
    value: Option<Value>,
    name: Option<String>,
    /// Arguments that wait for the name.
    early: String,
    has_args: bool,
}

/// A value that is being read.
#[derive(Clone, Debug)]
enum Value {
    Name(StringText, String),
    Args(ValueScan),
    /// Arguments as a text that holds JSON, or `null`: known when whole.
    ArgsWhole(ValueScan, String),
    Other(ValueScan),
}

impl CallReader {
    /// Takes the next character.
    pub fn push(&mut self, c: char, out: &mut Vec<Part>) -> Step {
        if self.value.is_none() {
            match self.walk.push(c) {
                Walk::More => return Step::Inside,
                Walk::Bad => return Step::Bad,
                Walk::End => return self.end(out),
                Walk::Value => self.value = Some(value(self.walk.key(), c)),
            }
        }
        match self.push_value(c, out) {
            Step::Inside => Step::Inside,
            Step::Bad => Step::Bad,
            Step::End => {
                self.walk.value_done();
                Step::Inside
            }
            Step::Past => {
                self.walk.value_done();
                self.push(c, out)
            }
        }
    }

    fn push_value(&mut self, c: char, out: &mut Vec<Part>) -> Step {
        let Some(mut value) = self.value.take() else { return Step::Bad };
        let step = match &mut value {
            Value::Name(text, name) => text.push(c, name),
            Value::Args(scan) | Value::Other(scan) | Value::ArgsWhole(scan, _) => scan.push(c),
        };
        let is_in = matches!(step, Step::Inside | Step::End);
        match &mut value {
            Value::Args(_) if is_in => self.add_args(c.into(), out),
            Value::ArgsWhole(_, text) if is_in => text.push(c),
            _ => {}
        }
        if step == Step::Inside {
            self.value = Some(value);
            return step;
        }
        match value {
            Value::Name(_, name) if step == Step::End => self.set_name(name, out),
            Value::ArgsWhole(_, text) => {
                let inner = serde_json::from_str::<String>(&text);
                let is_null = text == "null";
                self.add_args(inner.unwrap_or(if is_null { "{}".into() } else { text }), out);
            }
            _ => {}
        }
        step
    }

    fn set_name(&mut self, name: String, out: &mut Vec<Part>) {
        // A second name in one object means nothing.
        if self.name.is_none() {
            add(out, Part::Name(name.clone()));
            self.name = Some(name);
            if !self.early.is_empty() {
                add(out, Part::Args(std::mem::take(&mut self.early)));
            }
        }
    }

    fn add_args(&mut self, text: String, out: &mut Vec<Part>) {
        self.has_args = true;
        match self.name {
            Some(_) => add(out, Part::Args(text)),
            None => self.early.push_str(&text),
        }
    }

    fn end(&mut self, out: &mut Vec<Part>) -> Step {
        if self.name.is_none() {
            return Step::Bad;
        }
        if !self.has_args {
            add(out, Part::Args("{}".into()));
        }
        Step::End
    }
}

fn value(key: &str, first: char) -> Value {
    match (key, first) {
        ("name", _) => Value::Name(StringText::default(), String::new()),
        ("arguments" | "parameters", '{' | '[') => Value::Args(ValueScan::default()),
        ("arguments" | "parameters", _) => Value::ArgsWhole(ValueScan::default(), String::new()),
        _ => Value::Other(ValueScan::default()),
    }
}

/// Reads a list of calls.
#[derive(Clone, Debug, Default)]
pub(super) struct ListReader {
    has_begun: bool,
    /// A comma asks for another.
    needs_call: bool,
    call: Option<CallReader>,
}

impl ListReader {
    /// Takes the next character.
    pub fn push(&mut self, c: char, out: &mut Vec<Part>) -> Step {
        if let Some(call) = &mut self.call {
            let step = call.push(c, out);
            if step == Step::End {
                self.call = None;
                self.needs_call = false;
                return Step::Inside;
            }
            return step;
        }
        match c {
            _ if c.is_ascii_whitespace() => Step::Inside,
            '[' if !self.has_begun => {
                self.has_begun = true;
                Step::Inside
            }
            ']' if self.has_begun && !self.needs_call => Step::End,
            ',' if self.has_begun && !self.needs_call => {
                self.needs_call = true;
                Step::Inside
            }
            '{' if self.has_begun => self.call.insert(CallReader::default()).push(c, out),
            _ => Step::Bad,
        }
    }
}

/// Reads llama.cpp's generic form: `{"tool_call": {...}}`, `{"tool_calls": [...]}` or
/// `{"response": ...}`.
#[derive(Clone, Debug, Default)]
pub(super) struct GenericReader {
    walk: ObjectWalk,
    value: Option<GenericValue>,
}

#[derive(Clone, Debug)]
enum GenericValue {
    Call(CallReader),
    Calls(ListReader),
    Text(StringText),
    /// An answer that is JSON itself.
    Json(ValueScan),
    Other(ValueScan),
}

impl GenericReader {
    /// Takes the next character.
    pub fn push(&mut self, c: char, out: &mut Vec<Part>) -> Step {
        if self.value.is_none() {
            match self.walk.push(c) {
                Walk::More => return Step::Inside,
                Walk::Bad => return Step::Bad,
                Walk::End => return Step::End,
                Walk::Value => self.value = Some(generic_value(self.walk.key(), c)),
            }
        }
        let Some(value) = &mut self.value else { return Step::Bad };
        let mut text = String::new();
        let step = match value {
            GenericValue::Call(call) => call.push(c, out),
            GenericValue::Calls(list) => list.push(c, out),
            GenericValue::Text(string) => string.push(c, &mut text),
            GenericValue::Other(scan) => scan.push(c),
            GenericValue::Json(scan) => {
                let step = scan.push(c);
                if matches!(step, Step::Inside | Step::End) {
                    text.push(c);
                }
                step
            }
        };
        if !text.is_empty() {
            add(out, Part::Text(text));
        }
        match step {
            Step::Inside | Step::Bad => return step,
            Step::End | Step::Past => {
                self.value = None;
                self.walk.value_done();
            }
        }
        if step == Step::Past { self.push(c, out) } else { Step::Inside }
    }
}

fn generic_value(key: &str, first: char) -> GenericValue {
    match (key, first) {
        ("tool_call", '{') => GenericValue::Call(CallReader::default()),
        ("tool_calls", '[') => GenericValue::Calls(ListReader::default()),
        ("response", '"') => GenericValue::Text(StringText::default()),
        ("response", _) => GenericValue::Json(ValueScan::default()),
        _ => GenericValue::Other(ValueScan::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, mut push: impl FnMut(char, &mut Vec<Part>) -> Step) -> (Vec<Part>, Step) {
        let mut out = Vec::new();
        let mut step = Step::Inside;
        for c in text.chars() {
            step = push(c, &mut out);
            if step != Step::Inside {
                break;
            }
        }
        (out, step)
    }

    fn call(text: &str) -> (Vec<Part>, Step) {
        let mut call = CallReader::default();
        read(text, move |c, out| call.push(c, out))
    }

    fn parts(name: &str, args: &str) -> Vec<Part> {
        vec![Part::Name(name.into()), Part::Args(args.into())]
    }

    #[test]
    fn calls_in_every_order_and_shape() {
        for (text, args) in [
            (r#"{"name": "f", "arguments": {"a": "}"}}"#, r#"{"a": "}"}"#),
            (r#" {"parameters":{"a":[1]},"id":7,"name":"f"}"#, r#"{"a":[1]}"#),
            (r#"{"name":"f","arguments":"{\"a\":1}"}"#, r#"{"a":1}"#),
            (r#"{"type":"function","name":"f"}"#, "{}"),
            (r#"{"name":"f","arguments":null}"#, "{}"),
        ] {
            assert_eq!(call(text), (parts("f", args), Step::End), "{text}");
        }
        for text in [r#"{"arguments":{}}"#, r#"{"name":3}"#, "{name", r#"["f"]"#, r#"{"a":1,}"#] {
            assert_eq!(call(text).1, Step::Bad, "{text}");
        }
    }

    #[test]
    fn lists_and_the_generic_form() {
        let mut list = ListReader::default();
        let text = r#"[{"name":"f"}, {"name":"g","arguments":{}} ]"#;
        let (out, step) = read(text, move |c, out| list.push(c, out));
        assert_eq!((out, step), ([parts("f", "{}"), parts("g", "{}")].concat(), Step::End));
        for (text, expected) in [
            (r#"{"response": "a\nb"}"#, vec![Part::Text("a\nb".into())]),
            (r#"{"response": {"x": 1}}"#, vec![Part::Text(r#"{"x": 1}"#.into())]),
            (r#"{"tool_call": {"name": "f", "arguments": {"a": 1}}}"#, parts("f", r#"{"a": 1}"#)),
            (r#"{"tool_calls": [{"name": "f"}]}"#, parts("f", "{}")),
        ] {
            let mut generic = GenericReader::default();
            assert_eq!(read(text, move |c, out| generic.push(c, out)), (expected, Step::End));
        }
    }
}
