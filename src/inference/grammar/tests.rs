//! Grammars over a vocabulary of all bytes, a few words, and tokens that are no text.

use super::vocab::Word;
use super::*;
use crate::base::limits;

const WORDS: [&str; 6] = ["true", "\": ", "ab", "abc", "日本", "<tool_call>"];
const CONTROL: TokenId = 262;
const END: TokenId = 263;
/// A second token `a`, as SPM vocabularies have.
const SECOND_A: TokenId = 264;

fn vocab() -> GrammarVocab {
    let bytes = (0..=255).map(|byte| Word::Text(vec![byte]));
    let words = WORDS.map(|word| Word::Text(word.into()));
    let special = [Word::Control(b"[CALL]".into()), Word::End(b"<|end|>".into())];
    let second = [Word::Text(b"a".into()), Word::Control(vec![])];
    let words = bytes.chain(words).chain(special).chain(second).collect();
    GrammarVocab::from_words(words).unwrap()
}

fn gbnf(text: &str) -> GrammarSpec {
    GrammarSpec::Gbnf(text.to_owned())
}

fn schema(text: &str) -> GrammarSpec {
    GrammarSpec::JsonSchema(text.to_owned())
}

/// The tokens that the mask lets in.
fn allowed(matcher: &mut Matcher) -> Vec<TokenId> {
    let mut logits = vec![0.0; 266];
    matcher.mask(&mut logits).unwrap();
    let ids = 0..logits.len();
    ids.filter(|&id| logits[id] == 0.0).map(|id| id as TokenId).collect()
}

/// Whether the grammar accepts the whole text, byte by byte; at each byte the mask must say the
/// same as `accept`.
fn accepts(vocab: &GrammarVocab, spec: &GrammarSpec, text: &str) -> bool {
    let mut matcher = Matcher::new(vocab, spec).unwrap_or_else(|e| panic!("{spec:?}: {e}"));
    for &byte in text.as_bytes() {
        let is_masked = !allowed(&mut matcher).contains(&byte.into());
        let is_refused = matcher.accept(byte.into()).is_err();
        assert_eq!(is_masked, is_refused, "byte {byte:#x} of {text:?} under {spec:?}");
        if is_refused {
            return false;
        }
    }
    assert_eq!(allowed(&mut matcher).contains(&END), matcher.is_accepting());
    matcher.is_accepting()
}

fn check(spec: &GrammarSpec, good: &[&str], bad: &[&str]) {
    let vocab = vocab();
    for text in good {
        assert!(accepts(&vocab, spec, text), "{text:?} is refused by {spec:?}");
    }
    for text in bad {
        assert!(!accepts(&vocab, spec, text), "{text:?} is accepted by {spec:?}");
    }
}

#[test]
fn gbnf_means_what_llama_cpp_says() {
    let long = format!("root ::= [a]{{2,}} {}", "\"b\"? ".repeat(3));
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("root ::= \"a\" \"bc\" | \"ab\" \"d\"", &["abc", "abd"], &["ab", "abcd", ""]),
        ("root ::= [a-c]+ [^a-c]", &["abcx", "aé"], &["x", "ab", "abxx"]),
        ("root ::= [-a] [b-] [\\]\\-\\\\\\n]", &["--]", "ab\\", "-b\n"], &["c-]", "aaa"]),
        ("root ::= . .", &["aé", "日\n"], &["a", "日本x"]),
        ("root ::= \"\\x41\\u00e9\\U0001F600\\t\\r\\n\\\"\\\\\"", &["Aé😀\t\r\n\"\\"], &["A"]),
        ("root ::= (\"a\" |\n \"b\"\n)* # end\n", &["", "abba"], &["c"]),
        ("root ::= a-1{2} b\na-1 ::= \"x\" | \"y\"\nb ::= \"z\"{1,3}", &["xyz", "xxzzz"], &["xz"]),
        ("root ::= \"a\"{ 2 , } \"b\"{0} \"c\"{0,1}", &["aa", "aaaac"], &["a", "aab"]),
        ("root ::= (\"a\"{2}){2,3}", &["aaaa", "aaaaaa"], &["aaa", "aaaaa"]),
        ("root ::= ([a]?){3,5} \"b\"", &["b", "aab", "aaaaab"], &["aaaaaab"]),
        ("root ::= \"(\" root \")\" | ", &["", "()", "((()))"], &["(", "(()"]),
        ("root ::= \"a\" root \"b\" root | \"\"", &["aabb", "abab", ""], &["aab", "ba"]),
        ("root ::= ws \"x\"\nws ::= ([ \\t] ws)?", &["x", "  \tx"], &["\nx"]),
        ("root ::= \"a\"\r\n\r\n# note\r\nroot ::= \"b\"\r\n", &["b"], &["a"]),
        ("root ::= [\\u65e5-\\u672c] \"é\"", &["日é"], &["é", "日"]),
        ("root ::= \"a\\x00\" | \"b\"", &["b"], &["c", "\0"]),
        (&long, &["aa", "aaab", "aabbb"], &["a", "aabbbb"]),
    ];
    for (grammar, good, bad) in cases {
        check(&gbnf(grammar), good, bad);
    }
}

/// llama.cpp refuses the first byte of a character as soon as the class leaves out one of those
/// that it begins; here it is refused if it begins no other.
#[test]
fn a_character_may_begin_like_one_that_is_left_out() {
    check(&gbnf("root ::= [^\\u0085\\u2028]"), &["é", "日", "\u{86}"], &["\u{85}", "\u{2028}"]);
}

#[test]
fn gbnf_errors_name_the_place_or_the_rule() {
    let vocab = vocab();
    let cases = [
        ("", "`root` is not defined"),
        ("a ::= \"b\"", "`root` is not defined"),
        ("root ::= a", "`a` is not defined"),
        ("root ::= \"a", "line 1, column 12"),
        ("root ::= [a", "line 1, column 12"),
        ("root ::= []", "the class is empty"),
        ("root ::= [z-a]", "the range ends before it begins"),
        ("root ::= \"a\" )", "expected the end of the rule, found `)`"),
        ("root ::= (\"a\"", "expected `)`"),
        ("root := \"a\"", "line 1, column 6"),
        ("root ::= \"a\"\n\n| \"b\"", "line 3, column 1"),
        ("root ::= * \"a\"", "nothing to repeat"),
        ("root ::= \"\"*", "nothing to repeat"),
        ("root ::= \"a\"{,3}", "expected a number"),
        ("root ::= \"a\"{4,3}", "the greatest count"),
        ("root ::= \"a\"{99999999999}", "expected a number"),
        ("root ::= \"\\q\"", "`\\q` is no escape"),
        ("root ::= \"\\x4\"", "2 hexadecimal digits"),
        ("root ::= \"\\U00110000\"", "no such code point"),
        ("root ::= <[999999]>", "no such token"),
        ("root ::= <nothing>", "`<nothing>` is not one token"),
        ("root ::= <tool_call", "expected `>`"),
        ("root ::= root \"a\" | \"b\"", "`root` begins with itself"),
        ("root ::= a* b\na ::= \"x\"\nb ::= a* root", "begins with itself"),
        ("root ::= \"a\" b\nb ::= (c){3} \"y\"\nc ::= \"\" | b", "begins with itself"),
    ];
    for (grammar, message) in cases {
        let error = Matcher::new(&vocab, &gbnf(grammar)).err().expect(grammar).to_string();
        assert!(error.contains(message), "{grammar:?}: {error}");
    }
}

#[test]
fn gbnf_names_tokens() {
    let vocab = vocab();
    let mut matcher = Matcher::new(&vocab, &gbnf("root ::= <[262]> !<[262]> \"b\"")).unwrap();
    assert_eq!(allowed(&mut matcher), [CONTROL]);
    matcher.accept(CONTROL).unwrap();
    let others = allowed(&mut matcher);
    assert!(!others.contains(&CONTROL) && !others.contains(&END) && others.contains(&257));
    assert!(!others.contains(&265), "a token without text or name");
    matcher.accept(257).unwrap();
    assert_eq!(allowed(&mut matcher), [u32::from(b'b')]);

    // A token that is a text can be named, too.
    let mut matcher = Matcher::new(&vocab, &gbnf("root ::= <tool_call> \"b\"")).unwrap();
    assert_eq!(allowed(&mut matcher), [261]);
}

#[test]
fn gbnf_text_that_spells_a_control_token_allows_both() {
    let vocab = vocab();
    let mut matcher = Matcher::new(&vocab, &gbnf("root ::= \"[CALL]{}\"")).unwrap();
    assert_eq!(allowed(&mut matcher), [u32::from(b'['), CONTROL]);
    let mut by_token = matcher.clone();
    by_token.accept(CONTROL).unwrap();
    for byte in *b"[CALL]" {
        matcher.accept(byte.into()).unwrap();
    }
    assert_eq!(allowed(&mut by_token), [u32::from(b'{')]);
    assert_eq!(allowed(&mut matcher), [u32::from(b'{')]);
}

#[test]
fn a_control_token_is_no_text() {
    let vocab = vocab();
    for spec in [gbnf("root ::= .*"), GrammarSpec::Regex("(?s:.*)".to_owned())] {
        let mut matcher = Matcher::new(&vocab, &spec).unwrap();
        assert!(!allowed(&mut matcher).contains(&CONTROL), "{spec:?}");
        assert!(matcher.accept(CONTROL).is_err());
        matcher.accept(256).unwrap();
    }
}

#[test]
fn tokens_with_the_same_text_are_allowed_alike() {
    let vocab = vocab();
    for spec in [gbnf("root ::= \"ab\""), GrammarSpec::Regex("ab".to_owned())] {
        let mut matcher = Matcher::new(&vocab, &spec).unwrap();
        assert_eq!(allowed(&mut matcher), [u32::from(b'a'), 258, SECOND_A], "{spec:?}");
        matcher.accept(SECOND_A).unwrap();
        assert_eq!(allowed(&mut matcher), [u32::from(b'b')]);
    }
}

#[test]
fn a_token_may_cross_rules_and_end_inside_a_character() {
    let vocab = vocab();
    let grammar = gbnf("root ::= \"a\" b [日] [^x]\nb ::= \"b\" c?\nc ::= \"c\"");
    let mut matcher = Matcher::new(&vocab, &grammar).unwrap();
    assert_eq!(allowed(&mut matcher), [97, 258, 259, SECOND_A]);
    matcher.accept(259).unwrap();
    assert_eq!(allowed(&mut matcher), [0xE6, 260]);
    matcher.accept(0xE6).unwrap();
    assert_eq!(allowed(&mut matcher), [0x97]);
    assert!(!matcher.is_accepting() && !matcher.is_finished());
}

#[test]
fn regexes_and_lark() {
    let date = GrammarSpec::Regex(r"\d{4}-\d\d|n/a".to_owned());
    check(&date, &["2026-11", "n/a"], &["2026", "2026-111", ""]);
    check(&GrammarSpec::Regex(String::new()), &[""], &["a"]);
    let lark = "start: \"f(\" arg (\",\" arg)* \")\"\narg: /[a-z]+/ | NUMBER\nNUMBER: /[0-9]+/";
    check(&GrammarSpec::Lark(lark.to_owned()), &["f(a,1)", "f(xy)"], &["f()", "f(a,)"]);
    let mut call =
        Matcher::new(&vocab(), &GrammarSpec::Lark("start: <[262]> \"x\"".to_owned())).unwrap();
    assert_eq!(allowed(&mut call), [CONTROL]);
}

#[test]
fn json_schemas() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("{}", &["1", "\"a\"", "{\"a\": [null, true]}", "[]"], &["", "a", "{a:1}", "[1,]"]),
        ("true", &["-1.5e3"], &["01"]),
        (
            r#"{"type":"object","properties":{"b":{"type":"integer"},"a":{"type":"string"}},
               "required":["b"],"additionalProperties":false}"#,
            &[r#"{"b":1}"#, r#"{"b": -2, "a": "x\n"}"#, "{\n  \"b\": 0\n}"],
            &[r#"{"a":"x","b":1}"#, r#"{"a":"x"}"#, r#"{"b":1,"c":1}"#, r#"{"b":1.5}"#, "{}"],
        ),
        (r#"{"enum":["red",1,null]}"#, &["\"red\"", "1", "null"], &["\"blue\"", "2"]),
        (r#"{"const":{"a":[1]}}"#, &[r#"{"a":[1]}"#], &[r#"{"a":[2]}"#]),
        (r#"{"oneOf":[{"type":"null"},{"type":"boolean"}]}"#, &["null", "true"], &["1"]),
        (r#"{"anyOf":[{"type":"null"},{"const":7}]}"#, &["null", "7"], &["8"]),
        (r#"{"type":"integer","minimum":-3,"maximum":12}"#, &["-3", "0", "12"], &["13", "-4"]),
        (r#"{"type":"string","minLength":2,"maxLength":3}"#, &["\"ab\"", "\"abé\""], &["\"a\""]),
        (r#"{"type":"string","pattern":"^[a-c]+$"}"#, &["\"abc\""], &["\"abd\"", "\"\""]),
        (r#"{"type":"string","format":"date"}"#, &["\"2026-11-21\""], &["\"2026-13-01\""]),
        (r#"{"type":"string","format":"time"}"#, &["\"10:20:30Z\""], &["\"25:00:00Z\""]),
        (
            r#"{"type":"string","format":"uuid"}"#,
            &["\"00000000-0000-4000-8000-000000000000\""],
            &["\"0000\""],
        ),
        (
            r#"{"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":2}"#,
            &["[1]", "[1, 2]"],
            &["[]", "[1,2,3]", "[\"a\"]"],
        ),
        (
            r##"{"$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},
               "next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},
               "required":["v","next"],"additionalProperties":false}},"$ref":"#/$defs/n"}"##,
            &[r#"{"v":1,"next":{"v":2,"next":null}}"#],
            &[r#"{"v":1,"next":{"v":2}}"#],
        ),
    ];
    for (text, good, bad) in cases {
        check(&schema(text), good, bad);
    }
    check(&GrammarSpec::JsonObject, &["{}", r#"{"a":1}"#], &["[]", "1"]);
}

#[test]
fn white_space_in_json_has_a_bound() {
    let spec = schema(r#"{"type":"array","items":{"type":"null"}}"#);
    let indented = format!("[\n\n{}null]", " ".repeat(20));
    let far = format!("[\n{}null]", " ".repeat(21));
    check(&spec, &["[null,null]", "[ null, null ]", &indented], &["[  null]", "[\n\n\n]", &far]);
}

#[test]
fn schemas_that_cannot_be_kept_are_refused() {
    let vocab = vocab();
    for text in
        ["", "[]", "1", "false", "{\"type\":", "{\"type\":\"integr\"}", "{\"minimum\":\"a\"}"]
    {
        assert!(Matcher::new(&vocab, &schema(text)).is_err(), "{text}");
    }
    let unknown = r#"{"type":"array","uniqueItems":true}"#;
    let error = Matcher::new(&vocab, &schema(unknown)).err().unwrap().to_string();
    assert!(error.contains("uniqueItems"), "{error}");
    let lenient = r#"{"type":"array","uniqueItems":true,"x-guidance":{"lenient":true}}"#;
    check(&schema(lenient), &["[1,1]"], &["{}"]);
}

#[test]
fn answers_end_where_nothing_can_follow() {
    let vocab = vocab();
    for spec in [gbnf("root ::= \"a\" \"b\"?"), GrammarSpec::Regex("ab?".to_owned())] {
        let mut matcher = Matcher::new(&vocab, &spec).unwrap();
        assert!(!matcher.is_accepting() && !matcher.is_finished(), "{spec:?}");
        assert_eq!(matcher.accept(END), Err(GrammarError::NotAllowed { token: END }));
        matcher.accept(b'a'.into()).unwrap();
        assert!(matcher.is_accepting() && !matcher.is_finished(), "{spec:?}");
        assert_eq!(allowed(&mut matcher), [u32::from(b'b'), END]);
        let mut longer = matcher.clone();
        matcher.accept(END).unwrap();
        assert!(matcher.is_finished());
        assert_eq!(allowed(&mut matcher), [END]);
        longer.accept(b'b'.into()).unwrap();
        assert!(longer.is_accepting() && longer.is_finished(), "{spec:?}");
        assert_eq!(allowed(&mut longer), [END]);
        assert!(longer.accept(b'b'.into()).is_err());
        longer.accept(END).unwrap();
    }
    let mut object = Matcher::new(&vocab, &schema(r#"{"const":{"a":1}}"#)).unwrap();
    for byte in *br#"{"a":1}"# {
        assert!(!object.is_finished());
        object.accept(byte.into()).unwrap();
    }
    assert!(object.is_finished(), "no white space behind the value");
}

#[test]
fn a_refused_token_changes_nothing() {
    let vocab = vocab();
    for spec in [gbnf("root ::= \"abx\""), GrammarSpec::Regex("abx".to_owned())] {
        let mut matcher = Matcher::new(&vocab, &spec).unwrap();
        for token in [u32::from(b'b'), 259, CONTROL, 265, 266, u32::MAX] {
            assert_eq!(matcher.accept(token), Err(GrammarError::NotAllowed { token }), "{spec:?}");
        }
        matcher.accept(258).unwrap();
        matcher.accept(b'x'.into()).unwrap();
        assert!(matcher.is_finished());
    }
}

#[test]
fn clones_go_their_own_ways() {
    let vocab = vocab();
    let specs = [gbnf("root ::= (\"(\" [a-b]{0,3} root \")\")?"), schema("{}")];
    let texts = [["(a(b))", "(bb((a)))"], ["[[1],2]", "{\"a\":{}}"]];
    for (spec, texts) in specs.iter().zip(texts) {
        let first = Matcher::new(&vocab, spec).unwrap();
        let mut both = [first.clone(), first];
        for idx in 0..texts[0].len().max(texts[1].len()) {
            for (matcher, text) in both.iter_mut().zip(texts) {
                if let Some(&byte) = text.as_bytes().get(idx) {
                    *matcher = matcher.clone();
                    matcher.accept(byte.into()).unwrap();
                }
            }
        }
        assert!(both.iter_mut().all(Matcher::is_accepting));
    }
}

#[test]
fn masks_are_over_the_vocabulary_and_its_padding() {
    let vocab = vocab();
    let mut matcher = Matcher::new(&vocab, &gbnf("root ::= \"a\"")).unwrap();
    assert_eq!(matcher.mask(&mut [0.0; 265]), Err(GrammarError::Logits { got: 265, n_vocab: 266 }));
    let mut logits = [1.5; 300];
    matcher.mask(&mut logits).unwrap();
    let left: Vec<usize> = (0..300).filter(|&id| logits[id] == 1.5).collect();
    assert_eq!(left, [97, SECOND_A as usize]);
    assert!(logits.iter().all(|&logit| logit == 1.5 || logit == f32::NEG_INFINITY));
}

fn push(matcher: &mut Matcher, text: &str) -> Result<(), GrammarError> {
    text.bytes().try_for_each(|byte| matcher.accept(byte.into()))
}

#[test]
fn a_lazy_grammar_waits_for_its_trigger() {
    let vocab = vocab();
    let call = gbnf("root ::= \"<tool_call>\" [0-9]+ \"</tool_call>\"");
    let word = [Trigger::Word("<tool_call>".to_owned())];
    let mut matcher = Matcher::lazy(&vocab, &call, &word).unwrap();
    push(&mut matcher, "anything at all, <tool_cal").unwrap();
    assert!(matcher.is_waiting() && matcher.is_accepting() && !matcher.is_finished());
    assert_eq!(allowed(&mut matcher).len(), 266, "nothing is masked");
    push(&mut matcher, "l>").unwrap();
    assert!(!matcher.is_waiting());
    assert_eq!(allowed(&mut matcher), (48..58).collect::<Vec<_>>());
    assert!(push(&mut matcher, "x").is_err());
    push(&mut matcher, "12</tool_call>").unwrap();
    assert!(matcher.is_finished());

    // The trigger as one token, and a trigger behind which the same token goes on.
    let mut matcher = Matcher::lazy(&vocab, &call, &word).unwrap();
    push(&mut matcher, "a").unwrap();
    matcher.accept(261).unwrap();
    assert_eq!(allowed(&mut matcher), (48..58).collect::<Vec<_>>());
    let ab = [Trigger::Word("b".to_owned())];
    let mut matcher = Matcher::lazy(&vocab, &gbnf("root ::= \"bcd\""), &ab).unwrap();
    matcher.accept(259).unwrap();
    assert_eq!(allowed(&mut matcher), [u32::from(b'd')]);

    // An answer may end without a trigger.
    let mut matcher = Matcher::lazy(&vocab, &call, &word).unwrap();
    matcher.accept(END).unwrap();
    assert!(matcher.is_finished());
}

#[test]
fn triggers_are_tokens_and_patterns_too() {
    let vocab = vocab();
    for call in [gbnf("root ::= \"[CALL]x\""), GrammarSpec::Lark("start: <[262]> \"x\"".to_owned())]
    {
        let mut matcher = Matcher::lazy(&vocab, &call, &[Trigger::Token(CONTROL)]).unwrap();
        push(&mut matcher, "[CALL]").unwrap();
        assert!(matcher.is_waiting());
        matcher.accept(CONTROL).unwrap();
        assert_eq!(allowed(&mut matcher), [u32::from(b'x')]);
    }
    // A control token that the grammar only knows by its name.
    let by_name = GrammarSpec::Regex(r"\[CALL\]x".to_owned());
    let mut matcher = Matcher::lazy(&vocab, &by_name, &[Trigger::Token(CONTROL)]).unwrap();
    matcher.accept(CONTROL).unwrap();
    assert_eq!(allowed(&mut matcher), [u32::from(b'x')]);

    let digits = gbnf("root ::= [0-9]+ \"!\"");
    let group = [Trigger::Pattern(r"(?:call|do) ([0-9])".to_owned())];
    let mut matcher = Matcher::lazy(&vocab, &digits, &group).unwrap();
    push(&mut matcher, "日 do 7").unwrap();
    assert!(!matcher.is_waiting());
    push(&mut matcher, "1!").unwrap();
    assert!(matcher.is_finished());

    let whole = [Trigger::Pattern(r"^\s*\{$".to_owned())];
    let mut matcher = Matcher::lazy(&vocab, &gbnf("root ::= \" \"* \"{}\""), &whole).unwrap();
    push(&mut matcher, "  {").unwrap();
    assert!(!matcher.is_waiting());
    let mut matcher = Matcher::lazy(&vocab, &gbnf("root ::= \" \"* \"{}\""), &whole).unwrap();
    push(&mut matcher, "x {").unwrap();
    assert!(matcher.is_waiting());
}

#[test]
fn triggers_are_checked() {
    let vocab = vocab();
    let spec = gbnf("root ::= \"a\"");
    let word = |text: &str| Trigger::Word(text.to_owned());
    let pattern = |text: &str| Trigger::Pattern(text.to_owned());
    for bad in [word(""), pattern("("), word(&"a".repeat(limits::TRIGGER_BYTES_MAX + 1))] {
        assert!(matches!(
            Matcher::lazy(&vocab, &spec, &[bad]),
            Err(GrammarError::BadTrigger { .. })
        ));
    }
    assert!(Matcher::lazy(&vocab, &spec, &vec![word("a"); limits::TRIGGERS_MAX + 1]).is_err());
    // The grammar must begin with its trigger.
    let mut matcher = Matcher::lazy(&vocab, &spec, &[word("b")]).unwrap();
    assert_eq!(matcher.accept(b'b'.into()), Err(GrammarError::Trigger { text: "b".to_owned() }));
}

#[test]
fn a_trigger_is_found_behind_a_long_text() {
    let vocab = vocab();
    let word = [Trigger::Word("!!".to_owned())];
    let mut matcher = Matcher::lazy(&vocab, &gbnf("root ::= \"!!a\""), &word).unwrap();
    for _ in 0..limits::TRIGGER_WINDOW_BYTES / 3 + 100 {
        matcher.accept(259).unwrap();
    }
    push(&mut matcher, "!!a").unwrap();
    assert!(matcher.is_finished());
}

/// Grammars that ask for too much end in an error, at once or when the work is to be done; each
/// case would otherwise take hours or gigabytes.
#[test]
fn hostile_grammars_end_in_errors() {
    let vocab = vocab();
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000));
    let stars = format!("root ::= \"a\"{}", "*".repeat(100_000));
    let counts = "root ::= (((([a]?){1000000}){1000000}){1000000}){1000000} \"b\"";
    let ambiguous = "root ::= a{0,1000} a{0,1000} a{0,1000} \"b\"\na ::= \"a\"?";
    let gbnf_cases = [deep, stars, counts.to_owned(), ambiguous.to_owned()];
    let nested_json = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_regex = format!("{}a{}", "(".repeat(50_000), ")".repeat(50_000));
    let deep_lark = format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000));
    let chain: String = (0..30_000).map(|n| format!("T{n}: \"a\" T{} \n", n + 1)).collect();
    let others = [
        schema(&nested_json),
        schema(r##"{"$ref":"#"}"##),
        schema(r##"{"allOf":[{"$ref":"#"},{"type":"object"}]}"##),
        schema(r#"{"type":"string","pattern":"((((a{1,100}){1,100}){1,100}){1,100}b)+"}"#),
        GrammarSpec::Regex(deep_regex),
        GrammarSpec::Regex("((((a{1000}){1000}){1000}){1000}|b){1000000}".to_owned()),
        GrammarSpec::Regex("(a|aa)*(.*a.{100}){50}x".to_owned()),
        GrammarSpec::Lark(deep_lark),
        GrammarSpec::Lark(format!("start: T0\n{chain}T30000: \"b\"\n")),
        GrammarSpec::Lark("start: start start | \"a\"".to_owned()),
        GrammarSpec::JsonSchema(" ".repeat(limits::GRAMMAR_BYTES_MAX + 1)),
    ];
    for spec in gbnf_cases.into_iter().map(GrammarSpec::Gbnf).chain(others) {
        let Ok(mut matcher) = Matcher::new(&vocab, &spec) else { continue };
        let mut logits = vec![0.0; 266];
        for _ in 0..100 {
            if matcher.mask(&mut logits).is_err() || matcher.accept(b'a'.into()).is_err() {
                break;
            }
        }
    }
    let huge = (0..50_000).map(|n| format!("\"v{n}\"")).collect::<Vec<_>>().join(",");
    let _ = Matcher::new(&vocab, &schema(&format!("{{\"enum\":[{huge}]}}")));
}
