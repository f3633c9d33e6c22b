//! What no compiler checks: layers, the length of functions, and that README names what is there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who may use whom; nothing points up. The leaves all may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["config", "embedded", "limits", "logging", "memory", "panics", "server", "tls", "verify"]),
    (
        "test_support",
        &[
            "buffer",
            "cache",
            "clock",
            "coherence",
            "command",
            "node",
            "resp",
            "session",
            "shared",
            "time",
            "transport",
            "upstream",
            "verify",
        ],
    ),
    ("verify", &["buffer", "config", "resp", "time", "transport"]),
    (
        "server",
        &[
            "admin",
            "cache",
            "clients",
            "clock",
            "coherence",
            "command",
            "config",
            "memory",
            "node",
            "session",
            "shared",
            "time",
            "tls",
            "transport",
            "upstream",
        ],
    ),
    (
        "session",
        &[
            "admin",
            "audit",
            "buffer",
            "cache",
            "clients",
            "clock",
            "coherence",
            "command",
            "config",
            "node",
            "outbox",
            "resp",
            "shared",
            "time",
            "transport",
            "upstream",
        ],
    ),
    ("admin", &["audit", "cache", "clock", "coherence", "command", "config", "resp", "shared", "time"]),
    (
        "shared",
        &["audit", "cache", "clients", "coherence", "config", "node", "time", "topology", "transport", "upstream"],
    ),
    (
        "upstream",
        &[
            "buffer",
            "cache",
            "clock",
            "coherence",
            "command",
            "config",
            "node",
            "outbox",
            "resp",
            "time",
            "topology",
            "transport",
        ],
    ),
    ("topology", &["node"]),
    ("node", &["buffer", "cache", "clients", "coherence", "command", "config", "resp", "time", "transport"]),
    ("clients", &["time"]),
    ("embedded", &["config"]),
    ("limits", &["config"]),
    ("audit", &["cache", "coherence", "config", "resp", "time", "clock"]),
    ("coherence", &["cache", "clock", "config", "time"]),
    ("command", &["config", "resp"]),
    ("cache", &["clock", "sync", "time"]),
    ("outbox", &["buffer", "time", "transport"]),
    ("transport", &["buffer", "config", "tls"]),
    ("tls", &["config"]),
    ("clock", &["sync", "time"]),
    ("error", &["config"]),
    ("buffer", &[]),
    ("bypass", &[]),
    ("chance", &[]),
    ("config", &[]),
    ("memory", &[]),
    ("panics", &["logging"]),
    ("logging", &[]),
    ("numbers", &[]),
    ("resp", &[]),
    ("sabotage", &[]),
    ("sync", &[]),
    ("time", &[]),
];
const LEAVES: &[&str] = &["bypass", "chance", "error", "logging", "numbers", "panics", "sabotage"];

/// A file whose types have the names of another's: the schedule explorer's table takes the place of the real one under the
/// feature `shuttle`, and its users must not tell them apart.
const STAND_INS: &[(&str, &str)] = &[("src/cache/table/explored.rs", "src/cache/table.rs")];

/// The longest function, and those that are longer for now: (file, function, lines). A row may only shrink or go.
const LONGEST: usize = 70;
const LONGER_FOR_NOW: &[(&str, &str, usize)] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}

/// Every Rust file below `dir`.
fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The file's code: comments are left out.
fn code(path: &Path) -> String {
    let text = read(path);
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// `src/upstream/lane.rs` and `src/upstream.rs` are of the layer `upstream`.
fn layer(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").into()
}

/// The modules behind each `crate::` (or, in main, `nearside::`), those in braces included.
fn used(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for behind in code.split(prefix).skip(1) {
        let Some(group) = behind.strip_prefix('{') else {
            found.insert(identifier(behind));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.insert(identifier(&group[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    // a type at the crate's root, or a macro's `$crate::`, is no module
    found.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn uses_are_found() {
    let code = "use crate::{a::{x, y}, b, c::Z};\nfn f() { crate::d::g() }\nuse crate::Top;";
    assert_eq!(used(code, "crate::").into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

#[test]
fn no_layer_points_up() {
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let from = layer(&path);
        if from == "lib" {
            continue;
        }
        let prefix = if from == "main" { "nearside::" } else { "crate::" };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!("{from} is no layer: add it to LAYERS"));
            continue;
        };
        for to in used(&code(&path), prefix) {
            if to != from && !allowed.contains(&to.as_str()) && !LEAVES.contains(&to.as_str()) {
                wrong.push(format!("{}: {from} may not use {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table itself has no circle: each row uses only rows below it.
#[test]
fn the_layers_are_layers() {
    for (i, (from, allowed)) in LAYERS.iter().enumerate() {
        for to in *allowed {
            let below = LAYERS[i + 1..].iter().any(|(name, _)| name == to);
            assert!(below, "{from} uses {to}, which is not below it");
        }
    }
}

/// The folder's files that a file in it uses: by `super::` directly in the folder, by the folder's whole path anywhere.
fn siblings(folder: &str, path: &Path) -> BTreeSet<String> {
    let code = code(path);
    let whole = format!("crate::{}::", folder.trim_start_matches("src/").replace('/', "::"));
    let mut found = used(&code, &whole);
    if path.parent().unwrap() == root().join(folder) {
        found.extend(used(&code, "super::"));
    } else if path.parent().unwrap().parent().unwrap() == root().join(folder) {
        found.extend(used(&code, "super::super::"));
    }
    found
}

/// Files of one folder do not need each other in a circle. What stands in the folder's own file (a [`Node`], a [`Pool`]) all of
/// them may use.
#[test]
fn no_files_of_a_folder_go_in_a_circle() {
    let mut folders: BTreeSet<PathBuf> = rust_files("src").iter().map(|path| path.parent().unwrap().into()).collect();
    // The library's own modules are held by LAYERS.
    folders.remove(&root().join("src"));
    let mut all = 0;
    for folder in &folders {
        let folder = folder.strip_prefix(root()).unwrap().to_str().unwrap();
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in rust_files(folder) {
            let inside = path.strip_prefix(root().join(folder)).unwrap();
            let name = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
            uses.entry(name.into()).or_default().extend(siblings(folder, &path));
        }
        let names: BTreeSet<String> = uses.keys().cloned().collect();
        uses.iter_mut().for_each(|(name, to)| to.retain(|other| other != name && names.contains(other)));
        all += uses.values().map(BTreeSet::len).sum::<usize>();
        // Take away what uses nothing that is left, again and again: a circle stays.
        while let Some(floor) = uses.iter().find(|(_, to)| to.is_empty()).map(|(name, _)| name.clone()) {
            uses.remove(&floor);
            for to in uses.values_mut() {
                to.remove(&floor);
            }
        }
        assert!(uses.is_empty(), "{folder}: a circle is among {uses:?}");
    }
    assert!(all >= 100, "{all} uses were seen");
}

/// The types that the code defines. An indented `type` is a trait's, which has given the name.
fn types(code: &str) -> Vec<String> {
    let definition = |line: &str| {
        let mut words = line.split_whitespace().filter(|word| !word.starts_with("pub"));
        let kind = words.next()?;
        let named = matches!(kind, "struct" | "enum" | "trait" | "union") || kind == "type" && !line.starts_with(' ');
        named.then(|| words.next().map(identifier))?.filter(|name| name.starts_with(char::is_uppercase))
    };
    code.lines().filter_map(definition).collect()
}

#[test]
fn types_are_found() {
    let code = "pub struct A;\npub(super) enum B<T> {\n    type Err = X;\n    struct C(u8);\ntype D<'a> = X;\npub trait E: F {";
    assert_eq!(types(code), ["A", "B", "C", "D", "E"]);
}

/// A reader who has met a type's name once knows it everywhere.
#[test]
fn each_type_has_a_name_of_its_own() {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in rust_files("src") {
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        for name in types(&code(&path)) {
            named.entry(name).or_default().push(file.clone());
        }
    }
    for (name, files) in &mut named {
        files.retain({
            let all = files.clone();
            move |file| !STAND_INS.iter().any(|(by, of)| file == by && all.iter().any(|other| other == of))
        });
        assert!(files.len() <= 1, "{name} names several types, or one that is defined twice: {files:?}");
    }
}

/// The glossary of src/lib.rs: each term, and its explanation.
fn glossary() -> Vec<(String, String)> {
    let text = read(root().join("src/lib.rs"));
    let words = text.split("//! # Words\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let lines = words.lines().map(|line| line.trim_start_matches("//!").trim());
    let mut terms: Vec<(String, String)> = Vec::new();
    for line in lines {
        if let Some((term, text)) = line.strip_prefix("* **").and_then(|rest| rest.split_once("**: ")) {
            terms.push((term.to_owned(), text.to_owned()));
        } else if let Some((_, text)) = terms.last_mut() {
            *text += line;
        }
    }
    terms
}

/// Whether the text has these words, in the singular or the plural.
fn speaks_of(text: &str, term: &str) -> bool {
    text.match_indices(term).any(|(at, _)| {
        let letter = |c: char| c.is_alphanumeric() || c == '_';
        let behind = &text[at + term.len()..];
        !text[..at].ends_with(letter) && !behind.strip_prefix('s').unwrap_or(behind).starts_with(letter)
    })
}

/// A glossary that explains what nobody says, or says a thing twice, is not read.
#[test]
fn the_glossary_explains_the_words_of_the_code() {
    let terms = glossary();
    assert!(terms.len() > 25, "{terms:?}");
    let mut said = String::new();
    for path in rust_files("src").iter().filter(|path| !path.ends_with("src/lib.rs")) {
        said += &read(path).to_lowercase();
    }
    for (i, (term, _)) in terms.iter().enumerate() {
        assert!(speaks_of(&said, term), "nothing in src speaks of \"{term}\"");
        assert!(terms[..i].iter().all(|(other, _)| other != term), "\"{term}\" is explained twice");
    }
}

#[test]
fn the_glossary_names_types_that_exist() {
    let all: BTreeSet<String> = rust_files("src").iter().flat_map(|path| types(&code(path))).collect();
    let mut named = 0;
    for (term, text) in glossary() {
        for path in text.split('`').skip(1).step_by(2) {
            for name in path.split("::").filter(|name| name.starts_with(char::is_uppercase)) {
                assert!(all.contains(name), "{term}: {name} is no type");
                named += 1;
            }
        }
    }
    assert!(named > 8, "{named}");
}

/// Name and length of each function; rustfmt puts the last brace under the first letter.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let is_head =
            ["fn ", "pub ", "pub(", "async ", "const ", "unsafe ", "extern "].iter().any(|w| trimmed.starts_with(w));
        let Some((_, name)) = line.split_once("fn ").filter(|_| is_head) else { continue };
        if trimmed.ends_with(';') || trimmed.ends_with('}') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let length = lines[i..].iter().position(|line| *line == end).map_or(0, |last| last + 1);
        found.push((identifier(name), length));
    }
    found
}

#[test]
fn functions_are_found() {
    let text = "fn a() {\n    1\n}\nimpl X {\n    pub(super) async fn b(\n        x: u8,\n    ) {\n        {\n        }\n    }\n}\n";
    assert_eq!(functions(text), [("a".into(), 3), ("b".into(), 6)]);
}

#[test]
fn no_function_is_long() {
    let mut wrong = Vec::new();
    let mut longer = 0;
    for path in ["src", "tests", "benches"].into_iter().flat_map(rust_files) {
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        for (name, length) in functions(&read(&path)) {
            let known = LONGER_FOR_NOW.iter().find(|(f, n, _)| *f == file && *n == name);
            longer += usize::from(known.is_some_and(|_| length > LONGEST));
            let limit = known.map_or(LONGEST, |(_, _, lines)| *lines);
            if length > limit {
                wrong.push(format!("{file}: {name} has {length} lines, {limit} are allowed"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(longer, LONGER_FOR_NOW.len(), "a row of LONGER_FOR_NOW is no longer needed: delete it");
}

/// Public items without a comment, by line: functions, types, and the fields and variants of public types. (The compiler's own
/// lint asks this only of items that other crates can reach.)
fn undocumented(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let words = ["fn", "async", "const", "unsafe", "struct", "enum", "trait", "type", "static"];
    let mut found = Vec::new();
    // of the public type that is open: the indent of its fields and variants, and whether they are variants
    let mut open: Option<(usize, bool)> = None;
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let first = trimmed.strip_prefix("pub ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let inside = open.is_some_and(|(at, _)| at == indent);
        let is_variant = inside && open.is_some_and(|(_, is_enum)| is_enum) && trimmed.starts_with(char::is_uppercase);
        let is_field = inside && first.ends_with(':');
        if trimmed.ends_with('{') && matches!(first, "struct" | "enum") {
            open = Some((indent + 4, first == "enum"));
        } else if trimmed.starts_with('}') && open.is_some_and(|(at, _)| at > indent) {
            open = None;
        }
        if (words.contains(&first) || is_variant || is_field) && !has_comment(&lines[..i]) {
            found.push(i + 1);
        }
    }
    found
}

/// Whether a comment stands at the end of these lines, attributes aside.
fn has_comment(before: &[&str]) -> bool {
    let mut lines = before.iter().rev().map(|line| line.trim_start());
    while let Some(mut line) = lines.next() {
        if line.ends_with(")]") {
            while !line.starts_with("#[") {
                let Some(above) = lines.next() else { return false };
                line = above;
            }
        }
        if !line.starts_with("#[") {
            return line.starts_with("///");
        }
    }
    false
}

#[test]
fn public_items_are_documented() {
    let text = "/// a\n#[inline]\npub fn a() {}\npub fn b() {}\n/// C\npub enum C {\n    /// d\n    D,\n    E(u8),\n}\npub struct F {\n    pub g: u8,\n}\n";
    assert_eq!(undocumented(text), [4, 9, 11, 12]);
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let text = read(&path);
        let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
        wrong.extend(undocumented(shipped).into_iter().map(|line| format!("{}:{line}", path.display())));
    }
    wrong.retain(|place| !place.contains("tests.rs:"));
    assert!(wrong.is_empty(), "public without a comment:\n{}", wrong.join("\n"));
}

#[test]
fn readme_is_short_and_names_commands_that_exist() {
    let readme = read(root().join("README.md"));
    let lines = readme.lines().count();
    assert!(lines <= 120, "README.md has {lines} lines, 120 are allowed: docs/ has room for the rest");
    let commands = readme.split(|c: char| c.is_whitespace() || c == '`').filter(|word| word.starts_with("scripts/"));
    let commands: BTreeSet<&str> = commands.collect();
    assert!(commands.contains("scripts/run") && commands.contains("scripts/test"), "{commands:?}");
    for command in commands {
        assert!(is_executable(&root().join(command)), "README names {command}, which cannot be run");
    }
}

/// Every Markdown file of the project: not those of installed packages.
fn pages() -> Vec<PathBuf> {
    let foreign = ["target", "node_modules", ".venv", ".git"];
    let mut found = Vec::new();
    let mut dirs = vec![root().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !foreign.contains(&name) {
                dirs.push(path);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found
}

/// The anchors of a page's headings, as code hosts make them.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let letters = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(letters).collect()
}

/// Every page's links lead to a file, and to a heading of that file if they name one.
#[test]
fn links_lead_somewhere() {
    let pages = pages();
    assert!(pages.len() >= 15, "{pages:?}");
    let mut wrong = Vec::new();
    for page in pages {
        let text = read(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let there = link.starts_with("http")
                || target.exists()
                    && (anchor.is_empty() || anchors(&read(&target)).iter().any(|known| known == anchor));
            if !there {
                wrong.push(format!("{} links to {link}, which is not there", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The paths that a page names in backticks exist.
#[test]
fn documents_name_files_that_exist() {
    for page in pages() {
        let text = read(&page);
        let named = text.split('`').skip(1).step_by(2).filter(|word| {
            let tree = ["src/", "tests/", "docs/", "benches/", "findings/"].iter().any(|tree| word.starts_with(tree));
            tree && !word.contains(|c: char| c.is_whitespace() || c.is_uppercase() || c == '*')
        });
        for path in named {
            assert!(root().join(path).exists(), "{} names {path}, which is not there", page.display());
        }
    }
}

/// The first word of each sentence of a page: of paragraphs, items and cells, not of headings and code.
fn sentence_starts(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    let mut begins = true;
    for line in page.lines() {
        let line = line.trim();
        in_code ^= line.starts_with("```");
        if in_code || line.is_empty() || line.starts_with(['#', '<']) || line.starts_with("```") {
            begins = true;
            continue;
        }
        begins |=
            line.starts_with(['-', '*', '|']) || line.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok());
        for word in line.split(' ') {
            let marker = word.chars().all(|c| "-*|:".contains(c))
                || word.strip_suffix('.').is_some_and(|n| n.parse::<u8>().is_ok());
            if begins && !marker {
                found.push(word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned());
            }
            let ends = word.trim_end_matches(['*', ')', '`']);
            begins = marker && (begins || word == "|")
                || !marker && ends.ends_with(['.', '!', '?']) && !ends.ends_with("e.g.");
        }
    }
    found
}

#[test]
fn starts_of_sentences_are_found() {
    let page = "# What\n\nOne is. Two\nare.\n\n- Three (four). Five\n1. Six\n\n| Seven | eight. Nine |\n```\nten\n```\n**Eleven.** Twelve";
    let words = ["One", "Two", "Three", "Five", "Six", "Seven", "eight", "Nine", "Eleven", "Twelve"];
    assert_eq!(sentence_starts(page), words);
}

/// A sentence names its subject first: a reader who comes from elsewhere does not know what "it" is.
#[test]
fn sentences_name_their_subject_first() {
    let mut wrong = Vec::new();
    for page in pages() {
        for word in sentence_starts(&read(&page)) {
            if ["What", "Who", "Whom", "Whose", "Of", "It", "Somebody"].contains(&word.as_str()) {
                wrong.push(format!("{}: a sentence begins with {word}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Comments whose subject comes late or never, for now. The number may only shrink.
const SUBJECTLESS: usize = 4;

/// A comment names its subject first, as a sentence of a page does.
#[test]
fn comments_name_their_subject_first() {
    let late = ["What", "Who", "Whom", "Whose", "Of", "It", "See"];
    let mut found = Vec::new();
    for path in rust_files("src") {
        let text = read(&path);
        let comment = |line: &str| line.trim_start().starts_with("//");
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| comment(line)) {
            let said = line.trim_start().trim_start_matches(['/', '!']).trim_start();
            let goes_on = i > 0 && comment(lines[i - 1]) && !lines[i - 1].ends_with(['.', ':', '/', '!']);
            if !goes_on && (said.starts_with("So many") || late.iter().any(|word| first_word(said) == *word)) {
                found.push(format!("{}:{}: {said}", path.display(), i + 1));
            }
        }
    }
    assert!(found.len() <= SUBJECTLESS, "{} comments, at most {SUBJECTLESS}:\n{}", found.len(), found.join("\n"));
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
}

/// The functions that a page names as `Type::function` exist: in a file of src that also has the type.
#[test]
fn documents_name_functions_that_exist() {
    let files: Vec<String> = rust_files("src").iter().map(read).collect();
    let exists = |kind: &str, function: &str| {
        let declares = |text: &str, words: &[&str], name: &str| {
            words.iter().any(|word| {
                let head = format!("{word} {name}");
                text.split(&head).skip(1).any(|behind| !behind.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            })
        };
        let has_type = files.iter().any(|text| declares(text, &["struct", "enum"], kind));
        has_type && files.iter().any(|text| declares(text, &["fn"], function) && declares(text, &["impl"], kind))
    };
    let mut named = 0;
    for page in pages() {
        let text = read(&page);
        for word in text.split('`').skip(1).step_by(2) {
            let Some((kind, function)) = word.split_once("::") else { continue };
            if !kind.starts_with(|c: char| c.is_ascii_uppercase()) || identifier(function) != function {
                continue;
            }
            named += 1;
            assert!(exists(kind, function), "{} names {word}, which is not there", page.display());
        }
    }
    assert!(named >= 30, "{named}");
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0)
}

#[test]
fn the_documents_name_every_flag() {
    for (file, name, least, document) in [
        ("src/main.rs", "struct Flags {", 8, "docs/OPERATING.md"),
        ("src/verify.rs", "struct Options {", 13, "docs/VERIFY.md"),
    ] {
        let text = read(root().join(document));
        let code = read(root().join(file));
        let args = code.split(name).nth(1).unwrap().split("\n}").next().unwrap();
        let fields = args.lines().map(str::trim).filter(|line| !line.starts_with("//") && !line.starts_with('#'));
        let flags: Vec<String> = fields
            .filter_map(|line| line.split_once(": "))
            .map(|(field, _)| format!("`--{}", field.replace('_', "-")))
            .collect();
        assert!(flags.len() >= least, "{flags:?}");
        for flag in flags {
            assert!(text.contains(&flag), "{document} does not mention {flag}`");
        }
    }
}

/// docs/OPERATING.md names every setting of proxy.toml, and every field of INFO's section.
#[test]
fn the_documents_name_every_setting_and_metric() {
    let page = read(root().join("docs/OPERATING.md"));
    let shipped = read(root().join("proxy.toml"));
    let lines = shipped.lines().map(|line| line.trim_start_matches("# "));
    let settings: BTreeSet<&str> = lines
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, _)| key)
        .filter(|key| !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    let admin = read(root().join("src/admin.rs"));
    let fields: Vec<&str> = admin.split("add(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(settings.len() >= 40 && fields.len() >= 50, "{settings:?} {fields:?}");
    let unnamed = settings.iter().map(|key| format!("`{key}`")).chain(fields.iter().map(|f| format!("`nearside_{f}`")));
    let unnamed: Vec<String> = unnamed.filter(|name| !page.contains(name)).collect();
    assert!(unnamed.is_empty(), "docs/OPERATING.md does not name {unnamed:?}");
}

/// The wall clock can be set back, and the monotonic clock stands still while the machine sleeps: freshness is measured by
/// neither. `time.rs` reads the one clock that does neither; timers for waiting may be tokio's.
#[test]
fn freshness_is_measured_by_one_clock() {
    let foreign = ["SystemTime", "UNIX_EPOCH", "std::time::Instant", "ClockId::", "chrono::", "time::Instant::elapsed"];
    let of_freshness = ["cache", "clock", "coherence", "node", "upstream", "session", "audit", "outbox"];
    let mut wrong = Vec::new();
    for path in rust_files("src") {
        let code = code(&path);
        let tests = code.find("#[cfg(test)]").unwrap_or(code.len());
        let layer = layer(&path);
        for word in foreign.into_iter().filter(|word| code[..tests].contains(word)) {
            let own = layer == "time" && word == "ClockId::";
            if !own && !path.ends_with("tests.rs") {
                wrong.push(format!("{} reads {word}", path.display()));
            }
        }
        // A deadline of a wait is all that tokio's clock may be asked for.
        let deadlines = code[..tests].matches("Instant::now()").count();
        let waits = code[..tests].matches("let deadline = tokio::time::Instant::now()").count();
        if of_freshness.contains(&layer.as_str()) && deadlines > waits && !path.ends_with("tests.rs") {
            wrong.push(format!("{} reads tokio's clock for something else than a deadline", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let time = read(root().join("src/time.rs"));
    assert!(time.contains("clock_gettime(rustix::time::ClockId::Boottime)"), "the clock that counts sleep");
}

/// The program is a crate of its own and has the library's lints.
#[test]
fn the_program_has_the_librarys_lints() {
    let lints = |file: &str| {
        let text = read(root().join(file));
        let (_, rest) =
            text.split_once("#![cfg_attr(\n    not(test),").unwrap_or_else(|| panic!("{file} has no lints"));
        rest.split_once(")\n)]").unwrap().0.to_owned()
    };
    assert_eq!(lints("src/main.rs"), lints("src/lib.rs"));
}
