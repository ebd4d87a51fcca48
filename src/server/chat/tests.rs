//! Every family's form, whole and at every cut.

use proptest::prelude::*;

use super::*;

/// What an answer came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
}

fn spec(family: Family) -> ParserSpec {
    ParserSpec {
        family,
        names: Arc::from(["add".to_owned(), "sub".to_owned()]),
        splits_reasoning: true,
        begins_in_reasoning: false,
    }
}

fn read<'a>(spec: &ParserSpec, pieces: impl IntoIterator<Item = &'a str>) -> Said {
    let mut parser = spec.parser();
    let mut said = Said::default();
    let mut take = |deltas: Vec<Delta>| {
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => said.reasoning += &text,
                Delta::Content(text) => said.content += &text,
                Delta::Call { call_idx, id, name } => {
                    assert_eq!(call_idx, said.calls.len());
                    assert!(!id.is_empty());
                    said.calls.push((name, String::new()));
                }
                Delta::Args { call_idx, text } => said.calls[call_idx].1 += &text,
            }
        }
    };
    for piece in pieces {
        take(parser.push(piece));
    }
    take(parser.finish());
    said
}

fn said(content: &str, calls: &[(&str, &str)]) -> Said {
    let calls = calls.iter().map(|(name, args)| ((*name).to_owned(), (*args).to_owned()));
    Said { reasoning: String::new(), content: content.to_owned(), calls: calls.collect() }
}

/// Answers in every family's form, and what they say.
fn table() -> Vec<(Family, &'static str, Said)> {
    let one: &[(&str, &str)] = &[("add", r#"{"a": 1, "b": [2]}"#)];
    let two: &[(&str, &str)] = &[("add", r#"{"a": 1}"#), ("sub", "{}")];
    let mut table = vec![
        (Family::Plain, " a <tool_call> b \n", said(" a <tool_call> b \n", &[])),
        (
            Family::Hermes,
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2]}}\n</tool_call>",
            said("", one),
        ),
        (
            Family::Hermes,
            "Let me see.\n\n<tool_call>{\"name\":\"add\",\"arguments\":{\"a\": 1}}</tool_call>\n\
             <tool_call>\n{\"arguments\": {}, \"name\": \"sub\"}\n</tool_call>\n",
            said("Let me see.", two),
        ),
        (Family::Hermes, "1 < 2 <tool_cal", said("1 < 2 <tool_cal", &[])),
        (Family::Hermes, "x <tool_call> is a mark. ", said("x <tool_call> is a mark. ", &[])),
        (
            Family::Hermes,
            "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1",
            said("", &[("add", "{\"a\": 1")]),
        ),
        (
            Family::Llama3,
            " {\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": [2]}}",
            said("", one),
        ),
        (
            Family::Llama3,
            "{\"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"sub\"}\n",
            said("", two),
        ),
        (
            Family::Llama3,
            "{\"name\": \"Ann\", \"age\": 3} ",
            said("{\"name\": \"Ann\", \"age\": 3} ", &[]),
        ),
        (Family::Llama3, "  Hello {you}", said("  Hello {you}", &[])),
    ];
    table.extend(marked_table());
    table
}

/// The same for families that mark calls with tokens of their own.
fn marked_table() -> Vec<(Family, &'static str, Said)> {
    let mistral = |is_named| Family::Mistral { is_named };
    let deepseek = |is_fenced| Family::DeepSeek { is_fenced };
    let one: &[(&str, &str)] = &[("add", r#"{"a": 1, "b": [2]}"#)];
    let two: &[(&str, &str)] = &[("add", r#"{"a": 1}"#), ("sub", "{}")];
    vec![
        (
            mistral(false),
            "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefghi\"}, \
             {\"name\": \"sub\", \"arguments\": {}}]",
            said("", two),
        ),
        (
            mistral(true),
            "Well.[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]sub[ARGS]{}",
            said("Well.", two),
        ),
        (mistral(true), "a [TOOL", said("a [TOOL", &[])),
        (
            deepseek(false),
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}\
             <｜tool▁call▁end｜><｜tool▁call▁begin｜>sub<｜tool▁sep｜>{}<｜tool▁call▁end｜>\
             <｜tool▁calls▁end｜>",
            said("", two),
        ),
        (
            deepseek(true),
            "So:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n\
             {\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>sub\n\
             ```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            said("So:", two),
        ),
        (Family::Generic, "{\"response\": \"a \\\"b\\\"\\n \"}", said("a \"b\"\n ", &[])),
        (
            Family::Generic,
            "{\"tool_calls\": [{\"name\":\"add\", \"arguments\": {\"a\": 1}}, {\"name\":\"sub\"}]}",
            said("", two),
        ),
        (
            Family::Generic,
            "{ \"tool_call\": {\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2]}}}",
            said("", one),
        ),
        (Family::Generic, "Hello", said("Hello", &[])),
    ]
}

#[test]
fn every_family_is_read_whole() {
    for (family, text, expected) in table() {
        assert_eq!(read(&spec(family), [text]), expected, "{family:?} {text}");
    }
}

#[test]
fn every_cut_gives_what_the_whole_gives() {
    for (family, text, expected) in table() {
        for thought in ["", "<think>\nfirst </thin\n then\n</think>\n\n"] {
            let text = format!("{thought}{text}");
            let mut expected = expected.clone();
            if !thought.is_empty() {
                expected.reasoning = "first </thin\n then".into();
                // White space behind the reasoning is no content.
                expected.content = expected.content.trim_start().into();
            }
            let spec = spec(family);
            let letters: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(read(&spec, letters.iter().map(String::as_str)), expected, "{text}");
            for (at, _) in text.char_indices() {
                let (head, tail) = text.split_at(at);
                assert_eq!(read(&spec, [head, tail]), expected, "{family:?} {head:?} {tail:?}");
            }
        }
    }
}

#[test]
fn reasoning_that_the_prompt_opened_begins_at_once() {
    let opened = ParserSpec { begins_in_reasoning: true, ..spec(Family::Plain) };
    let expected = Said { reasoning: "a".into(), ..said("b", &[]) };
    assert_eq!(read(&opened, ["a\n</think>\n\nb"]), expected);
    let kept = ParserSpec { splits_reasoning: false, ..spec(Family::Plain) };
    assert_eq!(read(&kept, ["<think>a</think>b"]), said("<think>a</think>b", &[]));
}

const FAMILIES: [Family; 8] = [
    Family::Plain,
    Family::Hermes,
    Family::Llama3,
    Family::Mistral { is_named: false },
    Family::Mistral { is_named: true },
    Family::DeepSeek { is_fenced: false },
    Family::DeepSeek { is_fenced: true },
    Family::Generic,
];

/// Pieces that answers are made of, broken ones among them.
const SHARDS: [&str; 26] = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<think>",
    "</think>",
    "{\"name\": \"add\"",
    ", \"arguments\": ",
    "{\"a\": 1}",
    "}",
    "[",
    "]",
    "function",
    "\n```json\n",
    "\n```",
    " ",
    "\n",
    "ä",
    "\"",
    "{\"response\": \"",
    "<tool",
    "{\"tool_calls\": [",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_text_at_any_cuts_is_read_the_same(
        family in 0..FAMILIES.len(),
        shards in proptest::collection::vec(0..SHARDS.len(), 0..14),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        let text: String = shards.iter().map(|&shard| SHARDS[shard]).collect();
        let spec = spec(FAMILIES[family]);
        let mut ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        ends.push(text.len());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| ends[cut.index(ends.len())]).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]);
        prop_assert_eq!(read(&spec, pieces), read(&spec, [text.as_str()]));
    }
}

#[test]
fn families_are_told_by_their_templates() {
    for (source, family) in [
        ("{% if tools %}<tool_call>{% endif %}", Family::Hermes),
        ("{% if tools %}<tool_call><function=x>{% endif %}", Family::Generic),
        ("<|start_header_id|>{{ tools }}\"parameters\"", Family::Llama3),
        ("{{ tools }}[TOOL_CALLS]", Family::Mistral { is_named: false }),
        ("{{ tools }}[TOOL_CALLS]x[ARGS]", Family::Mistral { is_named: true }),
        ("<｜tool▁call▁begin｜>```json", Family::DeepSeek { is_fenced: true }),
        ("{{ messages }}", Family::Generic),
    ] {
        assert_eq!(Family::of_template(source), family, "{source}");
    }
}
