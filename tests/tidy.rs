//! Tidy: the code keeps to the tables of ARCHITECTURE.md and to the house's sizes.
//!
//! Checked here: imports against floors, faces, sole owners, `unsafe`, sizes, words that do not
//! belong on main, links between documents and how wide they are, and a reason for each dependency.
//! Every check returns what it found, so that the canaries at the end can show that it finds
//! something.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::source::Source;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;
const PROSE_COLUMNS_MAX: usize = 112;
/// Budgets to feel; only printed.
const FILE_LINES_AIM: usize = 300;
const FUNCTION_LINES_AIM: usize = 40;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files that ship: `src/` without files of tests.
fn shipped() -> Vec<Source> {
    Source::all("src").into_iter().filter(|s| !s.is_test()).collect()
}

/// All Rust that stands here.
fn everything() -> Vec<Source> {
    let folders = ["src", "tests", "benches", "fuzz/src", "fuzz/fuzz_targets"];
    folders.iter().flat_map(|folder| Source::all(folder)).collect()
}

fn assert_none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

// The tables of ARCHITECTURE.md.

/// Rows of the table under a heading; a cell is the list of its code spans, or its text.
fn table(document: &str, heading: &str) -> Vec<Vec<Vec<String>>> {
    let section = document.split("\n## ").find(|s| s.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("ARCHITECTURE.md has no section {heading}"));
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(cell).collect()).collect()
}

fn cell(text: &str) -> Vec<String> {
    let spans: Vec<String> = text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    match text.trim() {
        "" => vec![],
        plain if spans.is_empty() => vec![plain.to_owned()],
        _ => spans,
    }
}

struct Room {
    floor: f64,
    imports: BTreeSet<String>,
}

fn rooms(document: &str) -> BTreeMap<String, Room> {
    let room = |row: Vec<Vec<String>>| {
        let floor = row[1][0].parse().expect("a floor is a number");
        (row[0][0].clone(), Room { floor, imports: row[2].iter().cloned().collect() })
    };
    table(document, "Imports").into_iter().map(room).collect()
}

/// The room that a path belongs to: the longest name in the table that starts it.
fn room_of<'a>(rooms: &'a BTreeMap<String, Room>, path: &[String]) -> Option<&'a str> {
    let prefixes = (1..=path.len()).rev().map(|n| path[..n].join("::"));
    let known = prefixes.into_iter().find_map(|name| rooms.get_key_value(&name));
    known.map(|(name, _)| name.as_str())
}

// The checks.

fn table_breaches(rooms: &BTreeMap<String, Room>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, room) in rooms {
        let path = root().join("src").join(name.replace("::", "/"));
        if !path.is_dir() && !path.with_extension("rs").is_file() {
            found.push(format!("ARCHITECTURE.md: the room {name} is not in src/"));
        }
        for import in &room.imports {
            match rooms.get(import) {
                Some(below) if below.floor < room.floor => {}
                Some(_) => found.push(format!("{name} imports {import}, which is not below it")),
                None => found.push(format!("{name} imports {import}, which is no room")),
            }
        }
    }
    found
}

fn import_breaches(rooms: &BTreeMap<String, Room>, sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| s.path != "src/lib.rs") {
        let Some(own) = room_of(rooms, &source.module()) else {
            found.push(format!("{}: in no room of ARCHITECTURE.md", source.path));
            continue;
        };
        for (path, line) in source.paths() {
            let place = || format!("{}:{line}: {}", source.path, path.join("::"));
            let Some(target) = room_of(rooms, &path) else {
                continue; // a macro or item of the crate's root
            };
            if target != own && !rooms[own].imports.contains(target) {
                found.push(format!("{}: {own} may not import {target}", place()));
            } else if target != own && is_behind_face(target, &path) {
                found.push(format!("{}: not in the face of {target}", place()));
            }
        }
    }
    found
}

/// Whether a path goes into a module of the room that its face does not show.
fn is_behind_face(room: &str, path: &[String]) -> bool {
    let n_room = room.split("::").count();
    let (Some(next), Some(_)) = (path.get(n_room), path.get(n_room + 1)) else {
        return false; // an item, if perhaps of the same name as a module
    };
    let folder = root().join("src").join(room.replace("::", "/"));
    let is_module = folder.join(next).is_dir() || folder.join(format!("{next}.rs")).is_file();
    let face = std::fs::read_to_string(folder.join("mod.rs")).unwrap_or_default();
    is_module && !face.lines().any(|line| line == format!("pub mod {next};"))
}

fn owner_breaches(document: &str, sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for row in table(document, "Sole owners") {
        let (what, patterns, owners) = (&row[0][0], &row[1], &row[2]);
        for source in sources {
            let owns = |owner: &String| match owner.strip_suffix(".rs") {
                Some(_) => source.path == format!("src/{owner}"),
                None => source.module().join("::").starts_with(owner.as_str()),
            };
            if owners.iter().any(owns) {
                continue;
            }
            for pattern in patterns {
                let places = source.words(pattern).map(|at| source.line(at));
                let say = |line| format!("{}:{line}: {pattern} ({what})", source.path);
                found.extend(places.map(say));
            }
        }
    }
    found
}

fn unsafe_breaches(document: &str, sources: &[Source]) -> Vec<String> {
    let rows = table(document, "Where `unsafe` stands");
    let listed: Vec<&String> = rows.iter().map(|row| &row[0][0]).collect();
    let has_unsafe = |s: &&Source| s.words("unsafe").next().is_some();
    let users: Vec<&str> = sources.iter().filter(has_unsafe).map(|s| s.path.as_str()).collect();
    let covers = |entry: &str, path: &str| match entry.ends_with('/') {
        true => path.starts_with(entry),
        false => path == entry,
    };
    let unlisted = users.iter().filter(|path| !listed.iter().any(|entry| covers(entry, path)));
    let stale = listed.iter().filter(|entry| !users.iter().any(|path| covers(entry, path)));
    let unlisted = unlisted.map(|path| format!("{path}: unsafe, not listed in ARCHITECTURE.md"));
    let stale = stale.map(|entry| format!("{entry}: listed, but without unsafe"));
    unlisted.chain(stale).collect()
}

fn size_breaches(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut found = Vec::new();
    for (idx, line) in source.raw.lines().enumerate() {
        let n = line.chars().count();
        if n > COLUMNS_MAX {
            found.push(format!("{path}:{}: {n} columns", idx + 1));
        }
    }
    let n_lines = file_lines(source);
    if n_lines > FILE_LINES_MAX && !source.is_test() {
        found.push(format!("{path}: {n_lines} lines without tests"));
    }
    for (name, line, n) in source.functions() {
        if n > FUNCTION_LINES_MAX {
            found.push(format!("{path}:{line}: fn {name} has {n} lines"));
        }
    }
    found
}

/// Lines up to the unit tests.
fn file_lines(source: &Source) -> usize {
    let last = source.code.trim_end().len();
    source.code[..last].lines().count()
}

/// Words that say a thing is not finished, put together here so that this file has none.
fn unfinished(source: &Source) -> Vec<String> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let calls = [concat!("dbg", "!"), concat!("todo", "!"), concat!("unimplemented", "!")];
    let is_word = |line: &str, word: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
    };
    let in_text = source.raw.lines().enumerate().filter_map(|(idx, line)| {
        let word = words.iter().find(|word| is_word(line, word))?;
        Some(format!("{}:{}: {word}", source.path, idx + 1))
    });
    let in_code = calls.iter().flat_map(|call| {
        source.words(call).map(move |at| format!("{}:{}: {call}", source.path, source.line(at)))
    });
    in_text.chain(in_code).collect()
}

fn without_opening(sources: &[Source]) -> Vec<String> {
    let silent = sources.iter().filter(|s| !s.raw.starts_with("//! "));
    silent.map(|s| format!("{}: does not open with its idea", s.path)).collect()
}

/// Relative links of a document that lead nowhere.
fn dead_links(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("documents are UTF-8");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|t| !t.contains("://") && !t.starts_with('#'));
    let dead = local.filter(|t| {
        let file = t.split('#').next().expect("split gives one part");
        !path.parent().expect("a file has a folder").join(file).exists()
    });
    dead.map(|t| format!("{}: link to {t}", path.display())).collect()
}

fn documents() -> Vec<PathBuf> {
    let in_folder = |folder: &str| {
        let entries = std::fs::read_dir(root().join(folder)).expect("the folder exists");
        let paths = entries.map(|e| e.expect("the folder can be read").path());
        paths.filter(|p| p.extension().is_some_and(|e| e == "md")).collect::<Vec<_>>()
    };
    let folders = ["", "docs", "docs/decisions", "models/default"];
    folders.iter().flat_map(|folder| in_folder(folder)).collect()
}

/// Lines of a document that are too wide, but for tables and what is shown as it is.
fn wide_prose(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_shown = false;
    for (idx, line) in text.lines().enumerate() {
        is_shown ^= line.starts_with("```");
        let n = line.chars().count();
        if n > PROSE_COLUMNS_MAX && !is_shown && !line.starts_with('|') {
            found.push(format!("{name}:{}: {n} columns of prose", idx + 1));
        }
    }
    found
}

/// Names under the dependency headings of a manifest.
fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let keys = |table: &str| manifest[table].as_table().expect("a table").keys().cloned();
    keys("dependencies").chain(keys("dev-dependencies")).collect()
}

fn unexplained(manifest: &str, document: &str) -> Vec<String> {
    let missing = dependencies(manifest).into_iter();
    let missing = missing.filter(|name| !document.contains(&format!("| `{name}` |")));
    missing.map(|name| format!("docs/dependencies.md: no line for {name}")).collect()
}

// The tests.

#[test]
fn rooms_import_only_faces_below_them() {
    let rooms = rooms(&read("ARCHITECTURE.md"));
    assert_none(table_breaches(&rooms));
    assert_none(import_breaches(&rooms, &shipped()));
}

#[test]
fn owners_are_alone() {
    assert_none(owner_breaches(&read("ARCHITECTURE.md"), &shipped()));
}

#[test]
fn unsafe_stands_where_the_list_says() {
    assert_none(unsafe_breaches(&read("ARCHITECTURE.md"), &Source::all("src")));
}

#[test]
fn files_functions_and_lines_are_short() {
    let sources = everything();
    let shipped = shipped();
    let long_files = shipped.iter().filter(|s| file_lines(s) > FILE_LINES_AIM).count();
    let functions: Vec<usize> =
        shipped.iter().flat_map(Source::functions).map(|(_, _, n)| n).collect();
    let long_functions = functions.iter().filter(|n| **n > FUNCTION_LINES_AIM).count();
    println!(
        "{} files, {long_files} over {FILE_LINES_AIM} lines; {} functions, {long_functions} over \
         {FUNCTION_LINES_AIM} lines",
        shipped.len(),
        functions.len()
    );
    assert_none(sources.iter().flat_map(size_breaches).collect());
}

#[test]
fn files_open_with_their_idea_and_are_finished() {
    let sources = everything();
    assert_none(without_opening(&sources));
    assert_none(sources.iter().flat_map(unfinished).collect());
}

#[test]
fn links_between_documents_lead_somewhere() {
    assert_none(documents().iter().flat_map(|path| dead_links(path)).collect());
}

#[test]
fn documents_are_narrow_enough_to_read() {
    let wide = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("documents are UTF-8");
        wide_prose(&path.display().to_string(), &text)
    };
    assert_none(documents().iter().flat_map(wide).collect());
}

#[test]
fn every_dependency_is_explained() {
    assert_none(unexplained(&read("Cargo.toml"), &read("docs/dependencies.md")));
}

// Canaries: each check finds what it is for.

const TABLES: &str = "
## Imports

| room | floor | imports |
|---|---|---|
| `base` | 0 | |
| `inference::gguf` | 2 | `base` |
| `inference` | 3 | `inference::gguf` |

## Sole owners

| what | patterns | owners |
|---|---|---|
| the network | `hyper` | `cli` |

## Where `unsafe` stands

| file | why |
|---|---|
| `src/a.rs` | because |
";

fn one(path: &str, raw: &str) -> Vec<Source> {
    vec![Source::new(path, raw)]
}

#[test]
fn canary_imports() {
    let rooms = rooms(TABLES);
    let breaches = |raw| import_breaches(&rooms, &one("src/inference/gguf/x.rs", raw));
    assert_none(breaches("use crate::base::limits::{A, B}; use super::error::E;"));
    assert_none(breaches("// crate::inference::Model\nconst S: &str = \"crate::inference::M\";"));
    assert_none(breaches("#[cfg(test)]\nmod tests { use crate::inference::Model; }"));
    assert_eq!(breaches("use crate::inference::Model;").len(), 1);
    assert_eq!(breaches("fn f() { crate::inference::g(); }").len(), 1);
    assert_eq!(breaches("use crate::{base::{self, limits as l}, inference::{A, B}};").len(), 2);
    assert_eq!(breaches("use super::super::Model;").len(), 1);
    assert_none(breaches("mod inner { use super::super::error::E; }"));
    let below = one("src/base/x.rs", "use crate::inference::gguf::Gguf;");
    assert_eq!(import_breaches(&rooms, &below).len(), 1);
    assert_eq!(import_breaches(&rooms, &one("src/hub/x.rs", "")).len(), 1);
    let behind = one("src/inference/x.rs", "use crate::inference::gguf::header::f;");
    assert_eq!(import_breaches(&rooms, &behind).len(), 1);
    let upward = TABLES.replace("| `base` | 0 | |", "| `base` | 0 | `inference` |");
    assert_eq!(table_breaches(&self::rooms(&upward)).len(), 1);
}

#[test]
fn canary_owners_and_unsafe() {
    let alien = one("src/base/x.rs", "use hyper::Request; // hyper");
    assert_eq!(owner_breaches(TABLES, &alien).len(), 1);
    assert_none(owner_breaches(TABLES, &one("src/cli/pull.rs", "use hyper::Request;")));
    assert_none(owner_breaches(TABLES, &one("src/base/x.rs", "let hyperbola = '\"'; //hyper")));
    let listed = Source::new("src/a.rs", "unsafe fn f() {}");
    let alien = Source::new("src/b.rs", "fn f() { unsafe { g() } }");
    assert_none(unsafe_breaches(TABLES, std::slice::from_ref(&listed)));
    assert_eq!(unsafe_breaches(TABLES, &[listed, alien]).len(), 1);
    assert_eq!(unsafe_breaches(TABLES, &[]).len(), 1);
}

#[test]
fn canary_sizes_and_words() {
    let long_function = format!("//! x\nfn f() {{\n{}}}\n", "g();\n".repeat(FUNCTION_LINES_MAX));
    assert_eq!(size_breaches(&Source::new("src/a.rs", &long_function)).len(), 1);
    let tested = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "//\n".repeat(FILE_LINES_MAX));
    assert_none(size_breaches(&Source::new("src/a.rs", &tested)));
    let long_file = "const A: u8 = 0;\n".repeat(FILE_LINES_MAX + 1);
    assert_eq!(size_breaches(&Source::new("src/a.rs", &long_file)).len(), 1);
    let wide = format!("// {}", "é".repeat(COLUMNS_MAX));
    assert_eq!(size_breaches(&Source::new("src/a.rs", &wide)).len(), 1);
    let words = format!("// {}: later\nfn f() {{ {}!(x) }}", concat!("TO", "DO"), "dbg");
    assert_eq!(unfinished(&Source::new("src/a.rs", &words)).len(), 2);
    assert_eq!(without_opening(&one("src/a.rs", "fn f() {}")).len(), 1);
}

#[test]
fn canary_documents() {
    let wide = "a".repeat(PROSE_COLUMNS_MAX + 1);
    let text = format!("{wide}\n| {wide} |\n```text\n{wide}\n```\n- {wide}\n");
    assert_eq!(wide_prose("a.md", &text).len(), 2);
    assert_none(wide_prose("a.md", &wide[1..]));
}

#[test]
fn canary_dependencies() {
    let manifest = "[dependencies]\nserde = \"1\"\n[dev-dependencies]\nproptest = \"1\"\n";
    assert_eq!(unexplained(manifest, "| `serde` | reads |").len(), 1);
}
