//! The code in an answer: what stands in its first fence, or all of it when there is none.

/// The first fenced block's contents with a line end, or the whole text.
///
/// Fences are three or more backticks or tildes at the start of a line; the closing fence has at
/// least as many. A block that never closes goes to the end, because an answer may be cut off.
pub fn code_of(text: &str) -> String {
    let mut lines = text.lines();
    let Some(fence) = lines.by_ref().find_map(opening_fence) else {
        return with_line_end(text.trim_matches('\n'));
    };
    let block: Vec<&str> = lines.take_while(|line| !closes(line, &fence)).collect();
    with_line_end(block.join("\n").as_str())
}

fn opening_fence(line: &str) -> Option<String> {
    let line = line.trim_start_matches(' ');
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let fence: String = line.chars().take_while(|c| *c == mark).collect();
    // `inline code` in three backticks on one line opens nothing.
    let info = &line[fence.len()..];
    (fence.len() >= 3 && !info.contains('`')).then_some(fence)
}

fn closes(line: &str, fence: &str) -> bool {
    let line = line.trim();
    line.starts_with(fence) && line.chars().all(|c| fence.starts_with(c))
}

fn with_line_end(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{}\n", text.trim_end_matches('\n')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fence_counts() {
        let cases = [
            ("Here:\n```python\nprint(1)\n```\nand\n```\nx\n```\n", "print(1)\n"),
            ("print(1)", "print(1)\n"),
            ("\n\nprint(1)\n\n", "print(1)\n"),
            ("````md\n```\ninner\n```\n````", "```\ninner\n```\n"),
            ("~~~\na\n~~~", "a\n"),
            ("```python\ncut off", "cut off\n"),
            ("use ```x``` here", "use ```x``` here\n"),
            ("```\n```", ""),
            ("", ""),
        ];
        for (text, code) in cases {
            assert_eq!(code_of(text), code, "{text:?}");
        }
    }
}
