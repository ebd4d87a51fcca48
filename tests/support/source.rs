//! Rust source as the tidy checks see it: code without comments, string contents and unit tests.
//!
//! This is a scanner, not a parser. It knows where comments, literals and braces begin and end,
//! and nothing of macros or types; rules that need more than that are clippy's.

use std::path::{Path, PathBuf};

/// One file of `src/` or `tests/`.
pub struct Source {
    /// From the root of the package, with forward slashes.
    pub path: String,
    /// As it stands in the file.
    pub raw: String,
    /// The same lines; comments, contents of literals and `#[cfg(test)]` items are blanks.
    pub code: String,
}

impl Source {
    /// Scans `raw`.
    pub fn new(path: &str, raw: &str) -> Source {
        let code = without_tests(blank_comments_and_literals(raw));
        Source { path: path.to_owned(), raw: raw.to_owned(), code }
    }

    /// Every `.rs` file below `folder`, in the order of their paths.
    pub fn all(folder: &str) -> Vec<Source> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        collect(&root.join(folder), &mut files);
        files.sort();
        let read = |path: &PathBuf| {
            let name = path.strip_prefix(&root).expect("below the root").to_string_lossy();
            let raw = std::fs::read_to_string(path).expect("sources are UTF-8");
            Source::new(&name.replace('\\', "/"), &raw)
        };
        files.iter().map(read).collect()
    }

    /// Whether the whole file is tests.
    pub fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    /// `inference::gguf::header` for `src/inference/gguf/header.rs`.
    pub fn module(&self) -> Vec<String> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let path = path.trim_end_matches("/mod");
        path.split('/').map(str::to_owned).collect()
    }

    /// Number of the line at byte `at`, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Byte offsets of `word` in the code where it is a whole word.
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = self.code.as_bytes();
        let hits = self.code.match_indices(word).map(|(at, _)| at);
        let starts_word = word.starts_with(is_word_char);
        let ends_word = word.ends_with(is_word_char);
        let is_part = move |at: usize| bytes.get(at).is_some_and(|&b| is_word_byte(b));
        hits.filter(move |&at| {
            let continues = starts_word && is_part(at.wrapping_sub(1));
            let goes_on = ends_word && is_part(at + word.len());
            !continues && !goes_on
        })
    }

    /// `(name, first line, lines)` of every function with a body.
    pub fn functions(&self) -> Vec<(String, usize, usize)> {
        let body = |at: usize| {
            let rest = &self.code[at..];
            let name: String = rest[3..].chars().take_while(|c| is_word_char(*c)).collect();
            let open = at + rest.find(['{', ';'])?;
            let is_body = self.code[open..].starts_with('{') && !name.is_empty();
            let lines = self.line(close_of(&self.code, open)?) - self.line(at) + 1;
            is_body.then(|| (name, self.line(at), lines))
        };
        self.words("fn ").filter_map(body).collect()
    }

    /// Every absolute path `crate::a::b` that the file names, with its line; use trees are spread
    /// out, and `super::` is resolved.
    pub fn paths(&self) -> Vec<(Vec<String>, usize)> {
        let inline = self.inline_modules();
        let mut found = Vec::new();
        let mut add = |base: Vec<String>, at: usize| {
            let mut spread = Vec::new();
            spread_tree(&self.code[at..], base, &mut spread);
            found.extend(spread.into_iter().map(|path| (path, self.line(at))));
        };
        let crate_names: &[&str] = match self.path.as_str() {
            "src/main.rs" => &["crate::", "jetforge::"],
            _ => &["crate::"],
        };
        for name in crate_names {
            self.words(name).for_each(|at| add(vec![], at + name.len()));
        }
        for at in self.words("super::") {
            if self.code[..at].ends_with("super::") {
                continue; // counted with the first of the chain
            }
            let n_super = self.code[at..].split("super::").take_while(|s| s.is_empty()).count();
            let n_super = n_super.min(self.code[at..].matches("super::").count());
            let depth = inline.iter().filter(|span| span.contains(&at)).count();
            let mut base = self.module();
            base.extend(std::iter::repeat_n("{inline}".to_owned(), depth));
            base.truncate(base.len().saturating_sub(n_super));
            base.retain(|part| part != "{inline}");
            add(base, at + "super::".len() * n_super);
        }
        found
    }

    /// Byte ranges of the bodies of `mod name { ... }`.
    fn inline_modules(&self) -> Vec<std::ops::Range<usize>> {
        let body = |at: usize| {
            let open = at + self.code[at..].find(['{', ';'])?;
            let is_inline = self.code[open..].starts_with('{');
            is_inline.then(|| close_of(&self.code, open).map(|close| open..close))?
        };
        self.words("mod ").filter_map(body).collect()
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Where the brace that opens at `open` closes.
fn close_of(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, b) in code.bytes().enumerate().skip(open) {
        match b {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(at),
            b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// Reads `a::{b, c::d}` at the start of `text` and pushes `base::a::b` and `base::a::c::d`.
/// Returns the bytes read.
fn spread_tree(text: &str, mut base: Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if text[at..].starts_with('{') {
            at += 1;
            while !text[at..].trim_start().starts_with('}') {
                let n = spread_tree(&text[at..], base.clone(), out);
                at += n;
                let rest = text[at..].trim_start();
                if n == 0 && !rest.starts_with(',') {
                    return at; // not a use tree after all
                }
                at = text.len() - rest.trim_start_matches(',').len();
            }
            return text.len() - text[at..].trim_start()[1..].len();
        }
        let name: String =
            text[at..].chars().take_while(|c| is_word_char(*c) || *c == '*').collect();
        at += name.len();
        if !name.is_empty() {
            base.push(name);
        }
        if !text[at..].starts_with("::") {
            // `as other` renames; nothing else belongs to the path.
            let rest = text[at..].trim_start();
            if let Some(renamed) = rest.strip_prefix("as ") {
                let tail = renamed.trim_start_matches(is_word_char);
                at = text.len() - tail.len();
            }
            out.push(base);
            return at;
        }
        at += 2;
    }
}

/// Blanks comments and what stands between quotes, keeping length and lines.
fn blank_comments_and_literals(raw: &str) -> String {
    let bytes = raw.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        match end {
            Some((from, to, next)) => {
                out[from..to].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
                at = next;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("whole characters are blanked")
}

/// What to blank if a comment or literal starts at `at`: `(from, to, where to go on)`.
fn token_end(bytes: &[u8], at: usize) -> Option<(usize, usize, usize)> {
    let rest = &bytes[at..];
    let find = |from: usize, needle: &[u8]| {
        let hit = bytes[from..].windows(needle.len()).position(|w| w == needle);
        hit.map_or(bytes.len(), |n| from + n)
    };
    let starts_word = at == 0 || !is_word_byte(bytes[at - 1]);
    if rest.starts_with(b"//") {
        let end = find(at, b"\n");
        return Some((at, end, end));
    }
    if rest.starts_with(b"/*") {
        let end = (find(at, b"*/") + 2).min(bytes.len());
        return Some((at, end, end));
    }
    let n_prefix = [&b"br"[..], b"cr", b"r"].iter().find(|p| rest.starts_with(p)).map(|p| p.len());
    if let (true, Some(n_prefix)) = (starts_word, n_prefix) {
        let n_hash = rest[n_prefix..].iter().take_while(|b| **b == b'#').count();
        let open = at + n_prefix + n_hash;
        if bytes.get(open) == Some(&b'"') {
            let close = [&b"\""[..], &b"#".repeat(n_hash)].concat();
            let end = find(open + 1, &close);
            return Some((open + 1, end, (end + close.len()).min(bytes.len())));
        }
    }
    if rest.starts_with(b"\"") {
        let mut end = at + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let end = end.min(bytes.len());
        return Some((at + 1, end, end + 1));
    }
    // A character, not a lifetime: it closes after one character or one escape.
    if rest.starts_with(b"'") {
        let text = std::str::from_utf8(&rest[1..rest.len().min(16)]);
        let text = text.unwrap_or_else(|e| {
            std::str::from_utf8(&rest[1..1 + e.valid_up_to()]).expect("valid up to there")
        });
        let escaped = text.starts_with('\\');
        let skip = if escaped { 2 } else { text.chars().next().map_or(0, char::len_utf8) };
        let close = text.get(skip..)?.find('\'')?;
        if escaped || close == 0 {
            return Some((at + 1, at + 1 + skip + close, at + 2 + skip + close));
        }
    }
    None
}

/// Blanks every item under `#[cfg(test)]`.
fn without_tests(mut code: String) -> String {
    while let Some(at) = code.find("#[cfg(test)]") {
        let from = at + "#[cfg(test)]".len();
        let open = code[from..].find(['{', ';']).map_or(code.len(), |n| from + n);
        let end = match code[open..].starts_with('{') {
            true => close_of(&code, open).unwrap_or(code.len() - 1) + 1,
            false => (open + 1).min(code.len()),
        };
        let blank: String =
            code[at..end].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        code.replace_range(at..end, &blank);
    }
    code
}
