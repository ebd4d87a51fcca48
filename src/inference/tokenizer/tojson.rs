//! The `tojson` filter of Hugging Face's templates: Python's `json.dumps`, byte for byte.
//!
//! minijinja's own filter writes for HTML (`<` becomes `\u003c`), which models never saw. Here:
//! `ensure_ascii=False`, `", "` and `": "` between things, keys in their order, `indent=4` as
//! Python does it. Numbers print as Python prints them.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Values within values; a template can nest them without end.
const DEPTH_MAX: usize = 128;

/// How the text is laid out.
struct Style {
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

/// `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let (between_items, after_key) = match separators.as_deref() {
        Some([between, after]) => (between.clone(), after.clone()),
        Some(_) => return Err(error("tojson: separators are two strings")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Style {
        indent: indent.map(|indent| indent.min(64)),
        between_items,
        after_key,
        sort_keys: sort_keys.unwrap_or(false),
        ensure_ascii: ensure_ascii.unwrap_or(false),
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

fn error(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(error("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(("[", "]"), &items, depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(("{", "}"), &keys, depth, out, |key, out| {
                    self.key(key, out);
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            kind => return Err(error(&format!("tojson: {kind} has no JSON form"))),
        }
        Ok(())
    }

    fn list(
        &self,
        (open, close): (&str, &str),
        items: &[Value],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push_str(open);
        for (idx, item) in items.iter().enumerate() {
            if idx > 0 {
                out.push_str(&self.between_items);
            }
            self.line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push_str(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    /// Keys of other types become strings, as Python's do.
    fn key(&self, key: &Value, out: &mut String) {
        match (key.as_str(), key.kind()) {
            (Some(text), _) => self.string(text, out),
            (None, ValueKind::Bool) => {
                self.string(if key.is_true() { "true" } else { "false" }, out)
            }
            (None, ValueKind::None) => self.string("null", out),
            _ => self.string(&key.to_string(), out),
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..' ' => escape(c, out),
                '\u{7f}'.. if self.ensure_ascii => escape(c, out),
                _ => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `\u` and four digits for each UTF-16 unit.
fn escape(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
    }
}

fn number(value: &Value, out: &mut String) -> Result<(), Error> {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return Ok(());
    }
    let float = f64::try_from(value.clone())?;
    match () {
        () if float.is_nan() => out.push_str("NaN"),
        () if float.is_infinite() => {
            out.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" })
        }
        () => python_float(float, out),
    }
    Ok(())
}

/// Python's `repr`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16.
fn python_float(float: f64, out: &mut String) {
    let magnitude = float.abs();
    let is_plain = magnitude == 0.0 || (1e-4..1e16).contains(&magnitude);
    // Writing to a String cannot fail.
    let _ = match is_plain {
        true => write!(out, "{float:?}"),
        false => {
            let scientific = format!("{float:e}");
            let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            write!(out, "{digits}e{sign}{exponent:0>2}")
        }
    };
}
