//! Metadata without a file: errors name the key, and values show themselves in short.

use std::fmt::Write as _;

use super::super::*;

#[test]
fn a_wrong_type_or_range_names_the_key() {
    let m = Metadata::from_pairs([
        ("negative", Value::from(-1i32)),
        ("float", Value::from(1.0f32)),
        ("huge", Value::from(1e300f64)),
        ("text", Value::from("x")),
        ("longs", Value::from(&[1i64 << 40])),
        ("texts", Value::from(&["x"])),
    ]);
    let errors = [
        (m.u32("negative").unwrap_err(), "key `negative` is -1, which does not fit u32"),
        (m.u32("float").unwrap_err(), "key `float` should be u32 but is f32"),
        (m.f32("negative").unwrap_err(), "key `negative` should be f32 but is i32"),
        (m.bool("text").unwrap_err(), "key `text` should be bool but is str"),
        (m.str("texts").unwrap_err(), "key `texts` should be str but is array of str"),
        (m.strs("longs").unwrap_err(), "key `longs` should be array of str but is array of i64"),
        (m.i32s("longs").unwrap_err(), "key `longs` is 1099511627776, which does not fit i32"),
        (m.f32s("longs").unwrap_err(), "key `longs` should be array of f32 but is array of i64"),
    ];
    for (error, message) in errors {
        assert_eq!(error.to_string(), message);
    }
    assert!(m.f32("huge").unwrap_err().to_string().starts_with("key `huge` is 1"));
}

#[test]
fn metadata_replaces_and_shows_itself() {
    let mut m = Metadata::from_pairs([("a", Value::from(1u32))]);
    m.set("a", "two");
    m.set("b", &[1u32, 2, 3, 4, 5]);
    m.set("c", &["x\u{1b}[31m"]);
    m.set("d", "y".repeat(100).as_str());
    let shown = m.iter().fold(String::new(), |mut text, (key, value)| {
        writeln!(text, "{key} = {value}").expect("strings take all text");
        text
    });
    let expected = format!(
        "a = \"two\"\nb = [1, 2, 3, 4, ...] (5 x u32)\nc = [\"x\\u{{1b}}[31m\"] (1 x str)\n\
         d = \"{}\"... (100 bytes)\n",
        "y".repeat(60)
    );
    assert_eq!(shown, expected);
}
