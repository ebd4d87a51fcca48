//! Bounds on what one call in a chat template may make out of a number.
//!
//! A step of a template costs one unit of fuel however much it does. `'%999999999d' % x`, `indent`
//! and the like turn a number in the source into as many bytes, and a failed allocation ends the
//! whole process, so here such numbers are bounded; `slice` and `batch`, which loop by a number and
//! which no chat needs, are taken away.
//!
//! What grows by data and not by a number (doubling a string in a loop, `replace`, `join`) is not
//! bounded: the engine has no place to ask. Whoever renders templates of strangers needs a process
//! with a limit on memory and time around it.

use minijinja::value::{Kwargs, Rest, Value, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::base::limits::CHAT_TEMPLATE_WIDTH_MAX;

/// Bounds the filters and string methods of `env`.
pub(super) fn bound(env: &mut Environment<'_>) {
    env.remove_filter("slice");
    env.remove_filter("batch");
    env.add_filter("indent", indent);
    env.add_filter("format", |state: &mut State, text: &Value, args: Rest<ValueOrKwargs>| {
        check_format(text)?;
        filters::format(state, text, args)
    });
    env.set_unknown_method_callback(|state, value, method, args| {
        if method == "format" {
            check_format(value)?;
        }
        unknown_method_callback(state, value, method, args)
    });
}

fn indent(
    text: &Value,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => kwargs.get::<Option<usize>>("width")?,
    };
    let width = width.unwrap_or(4);
    if width > CHAT_TEMPLATE_WIDTH_MAX {
        return Err(too_wide("indent"));
    }
    let flag = |given: Option<bool>, name| -> Result<bool, Error> {
        Ok(given.or(kwargs.get::<Option<bool>>(name)?).unwrap_or(false))
    };
    let (first, blank) = (flag(first, "first")?, flag(blank, "blank")?);
    kwargs.assert_all_used()?;
    let text = text.to_string();
    let margin = " ".repeat(width);
    let mut out = String::with_capacity(text.len());
    for (line_idx, line) in text.strip_suffix('\n').unwrap_or(&text).split('\n').enumerate() {
        if line_idx > 0 {
            out.push('\n');
        }
        let is_blank = line.is_empty() || line == "\r";
        if (line_idx > 0 || first) && (blank || !is_blank) {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// Refuses a format with a number beyond the limit, which may be a width or a precision, and one
/// that takes a width from its arguments. Coarse, but no reading of the format can go around it.
fn check_format(text: &Value) -> Result<(), Error> {
    let text = text.as_str().unwrap_or_default();
    let is_wide = |digits: &str| !digits.parse().is_ok_and(|n: usize| n <= CHAT_TEMPLATE_WIDTH_MAX);
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|d| !d.is_empty());
    let has_wide = numbers.any(is_wide);
    let has_star = text.match_indices('*').any(|(at, _)| {
        let before = text[..at].trim_end_matches(|c: char| "#-+ .0123456789".contains(c));
        before.ends_with(['%', ')'])
    });
    match has_wide || has_star {
        true => Err(too_wide("format")),
        false => Ok(()),
    }
}

fn too_wide(what: &str) -> Error {
    let message = format!("{what}: a width is at most {CHAT_TEMPLATE_WIDTH_MAX}");
    Error::new(ErrorKind::InvalidOperation, message)
}
