//! YAML as another spelling of the same keys: maps, lists and plain values, with their lines.
//!
//! ```text
//! model:            ->  "model" at line 1, a map of
//!   n_ctx: 2048           "n_ctx" at line 2, 2048
//! ```
//!
//! Of YAML only what a configuration needs: no anchors, tags or several documents, which are
//! refused by name. Words mean what YAML 1.2's core schema says: `yes` and `on` are texts.

use std::iter::Peekable;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use toml::{Table, Value};

use crate::base::limits::CONFIG_DEPTH_MAX;

/// What stands behind a key.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    /// More keys.
    Map(Vec<Entry>),
    /// A value.
    Value(Value),
    /// Nothing, which leaves a key unset.
    Null,
}

/// A key with its line, from 1.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub name: String,
    pub line: usize,
    pub node: Node,
}

/// A line and what is wrong there.
pub(super) type Wrong = (usize, String);

impl Node {
    /// As TOML's values have it; `None` for nothing.
    pub fn into_value(self) -> Option<Value> {
        match self {
            Node::Value(value) => Some(value),
            Node::Null => None,
            Node::Map(entries) => {
                let pairs = entries.into_iter();
                let pairs = pairs.filter_map(|entry| Some((entry.name, entry.node.into_value()?)));
                Some(Value::Table(pairs.collect::<Table>()))
            }
        }
    }
}

/// The keys of a document.
///
/// # Errors
/// The first line that is no YAML, or more of it than is read here.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, Wrong> {
    let mut reader = Reader { events: Parser::new_from_str(text).peekable() };
    let mut entries = Vec::new();
    let mut n_document = 0;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => return Ok(entries),
            Event::DocumentStart(_) => {
                n_document += 1;
                if n_document > 1 {
                    return Err((line, "a second document is not read".to_owned()));
                }
            }
            event => match reader.node(event, line, 0)? {
                Node::Map(map) => entries = map,
                Node::Null => {}
                Node::Value(_) => return Err((line, "keys are expected here".to_owned())),
            },
        }
    }
}

struct Reader<'t> {
    events: Peekable<Parser<'t, StrInput<'t>>>,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, usize), Wrong> {
        let at = |result: Result<(Event<'t>, Span), ScanError>| match result {
            Ok((event, span)) => Ok((event, span.start.line())),
            Err(error) => Err((error.marker().line(), error.info().to_owned())),
        };
        self.events.next().map_or_else(|| Ok((Event::StreamEnd, 1)), at)
    }

    fn node(&mut self, event: Event<'t>, line: usize, depth: usize) -> Result<Node, Wrong> {
        if depth > CONFIG_DEPTH_MAX {
            return Err((line, "no key lies so deep".to_owned()));
        }
        match event {
            Event::Scalar(text, style, 0, None) => {
                Ok(if style == ScalarStyle::Plain { plain(&text) } else { string(&text) })
            }
            Event::SequenceStart(0, None) => self.list(depth),
            Event::MappingStart(0, None) => self.map(depth),
            Event::Alias(_) => Err((line, "an alias (*name) is not read here".to_owned())),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                Err((line, "a tag (!name) is not read here".to_owned()))
            }
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => {
                Err((line, "an anchor (&name) is not read here".to_owned()))
            }
            _ => Err((line, "a value is expected here".to_owned())),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Node, Wrong> {
        let mut items = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Node::Value(Value::Array(items)));
            }
            let item = self.node(event, line, depth + 1)?.into_value();
            items.push(item.ok_or((line, "an item is empty".to_owned()))?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Node, Wrong> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            let name = match event {
                Event::MappingEnd => return Ok(Node::Map(entries)),
                Event::Scalar(name, _, 0, None) => name.into_owned(),
                _ => return Err((line, "a key is expected here".to_owned())),
            };
            if let Some(first) = entries.iter().find(|entry| entry.name == name) {
                let message = format!("`{name}` stands here again; it is in line {}", first.line);
                return Err((line, message));
            }
            let (event, value_line) = self.next()?;
            let node = self.node(event, value_line, depth + 1)?;
            entries.push(Entry { name, line, node });
        }
    }
}

fn string(text: &str) -> Node {
    Node::Value(Value::String(text.to_owned()))
}

/// A plain scalar by YAML's core schema.
fn plain(text: &str) -> Node {
    let radix = |prefix: &str, radix| {
        text.strip_prefix(prefix).and_then(|digits| i64::from_str_radix(digits, radix).ok())
    };
    let is_number = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        "true" | "True" | "TRUE" => return Node::Value(Value::Boolean(true)),
        "false" | "False" | "FALSE" => return Node::Value(Value::Boolean(false)),
        _ => {}
    }
    if let Some(n) = text.parse().ok().or(radix("0x", 16)).or(radix("0o", 8)) {
        return Node::Value(Value::Integer(n));
    }
    match text.parse::<f64>() {
        Ok(x) if is_number => Node::Value(Value::Float(x)),
        _ => string(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Result<Vec<(String, usize, String)>, Wrong> {
        fn walk(entries: Vec<Entry>, prefix: &str, out: &mut Vec<(String, usize, String)>) {
            for Entry { name, line, node } in entries {
                let key = format!("{prefix}{name}");
                match node {
                    Node::Map(inner) => walk(inner, &format!("{key}."), out),
                    Node::Value(value) => out.push((key, line, value.to_string())),
                    Node::Null => out.push((key, line, "nothing".to_owned())),
                }
            }
        }
        let mut out = Vec::new();
        walk(parse(text)?, "", &mut out);
        Ok(out)
    }

    #[test]
    fn values_have_their_types_and_keys_their_lines() {
        let text = "# a comment\nmodel:\n  name: qwen 1.5b # another\n  n_ctx: 2048\n  isa: \"7\"\n\
                    \n  kv_type:\nserver: {port: 0x1F, metrics: true}\nlist: [1, two, -0.5]\n\
                    block:\n- a\n- 'b'\nword: yes\nfan: [[40, 0], [50, 80]]\n";
        let found = flat(text).unwrap();
        let found: Vec<_> = found.iter().map(|(k, n, v)| (k.as_str(), *n, v.as_str())).collect();
        let expected = [
            ("model.name", 3, "\"qwen 1.5b\""),
            ("model.n_ctx", 4, "2048"),
            ("model.isa", 5, "\"7\""),
            ("model.kv_type", 7, "nothing"),
            ("server.port", 8, "31"),
            ("server.metrics", 8, "true"),
            ("list", 9, "[1, \"two\", -0.5]"),
            ("block", 10, "[\"a\", \"b\"]"),
            ("word", 13, "\"yes\""),
            ("fan", 14, "[[40, 0], [50, 80]]"),
        ];
        assert_eq!(found, expected);
        assert_eq!(flat("").unwrap(), []);
        assert_eq!(flat("---\n# nothing\n").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let deep = "a: ".to_owned() + &"[".repeat(100);
        for (text, line, words) in [
            ("a: 1\nb: [1, 2\n", 3, ""),
            ("a: 1\na: 2\n", 2, "line 1"),
            ("a: &x 1\n", 1, "anchor"),
            ("a: 1\nb: *x\n", 2, ""),
            ("a: !!binary abc\n", 1, "tag"),
            ("a: 1\n---\nb: 2\n", 2, "second document"),
            ("- 1\n- 2\n", 1, "keys are expected"),
            ("just words\n", 1, "keys are expected"),
            ("? [a, b]\n: 1\n", 1, "a key is expected"),
            (&deep, 1, "so deep"),
        ] {
            let (at, message) = flat(text).unwrap_err();
            assert_eq!(at, line, "{text:?}: {message}");
            assert!(message.contains(words), "{text:?}: {message}");
        }
    }
}
