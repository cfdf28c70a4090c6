//! `docs/divergence.md` and the tables of the harness are the same lists, and the tests that the document names are there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lb_tests::differential::{
    divergence::{DIFFERENCES, Difference, LIMITS},
    modes::MODES,
};

/// What the last column says of a difference that the harness finds by itself.
const SCENARIOS: &str = "scenarios";
/// Where tests are.
const SOURCES: [&str; 4] = ["lb-agent", "lb-ebpf/src", "tests/src", "tests/tests"];

/// A row of one of the document's tables that have ids.
struct Row {
    id: String,
    /// The last column.
    test: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tables() -> Vec<Vec<Row>> {
    let path = root().join("docs/divergence.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let rows = |table: &str| -> Vec<Row> {
        let row = |line: &str| {
            let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
            Some(Row { id: (*cells.first()?).to_owned(), test: (*cells.last()?).to_owned() })
        };
        table.lines().skip(2).map_while(row).collect()
    };
    text.split("\n| id |").skip(1).map(rows).collect()
}

pub(crate) fn every_announced_difference_is_documented_and_no_other() {
    let ids = |table: &[Difference]| -> BTreeSet<String> {
        table.iter().map(|difference| difference.id.to_owned()).collect()
    };
    let expected = [ids(DIFFERENCES), ids(LIMITS), ids(MODES)];
    let all: BTreeSet<&String> = expected.iter().flatten().collect();
    assert_eq!(all.len(), DIFFERENCES.len() + LIMITS.len() + MODES.len(), "an id is there twice");
    let documented: Vec<BTreeSet<String>> =
        tables().into_iter().map(|table| table.into_iter().map(|row| row.id).collect()).collect();
    assert_eq!(documented, expected, "left: docs/divergence.md, right: DIFFERENCES, LIMITS and MODES");
}

/// A row that the harness does not look for says so, and a row's tests are functions, files, or texts of tests that are there.
pub(crate) fn every_test_that_the_document_names_is_there() {
    let mut code = String::new();
    for directory in SOURCES {
        read(&root().join(directory), &mut code);
    }
    let tables = tables();
    for Row { id, test } in tables[..2].iter().flatten() {
        let difference = DIFFERENCES.iter().chain(LIMITS).find(|difference| difference.id == id);
        let is_found = difference.is_some_and(|difference| difference.explains.is_some());
        assert_eq!(test.starts_with(SCENARIOS), is_found, "{id}: whether scenarios show it: {test}");
        let named: Vec<&str> = between(test, '`').chain(between(test, '"')).collect();
        assert!(is_found || !named.is_empty(), "{id}: no test is named: {test}");
    }
    for Row { id, test } in tables.iter().flatten() {
        for name in between(test, '`').filter(|name| !name.starts_with("cargo ")) {
            let is_file = root().join(name).is_file();
            let is_scenario = root().join("tests/scenarios").join(name).with_extension("yaml").is_file();
            assert!(is_file || is_scenario || code.contains(&format!("fn {name}(")), "{id}: there is no {name}");
        }
        for text in between(test, '"') {
            assert!(code.contains(&format!("\"{text}\"")), "{id}: no test says {text:?}");
        }
    }
}

/// What stands between two of these.
fn between(text: &str, quote: char) -> impl Iterator<Item = &str> {
    text.split(quote).skip(1).step_by(2)
}

/// Adds the text of all sources below a directory.
fn read(directory: &Path, code: &mut String) {
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            read(&path, code);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            *code += &fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
