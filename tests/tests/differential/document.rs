//! `docs/divergence.md` and the tables of the harness are the same lists.

use std::{collections::BTreeSet, fs, path::Path};

use lb_tests::differential::divergence::{DIFFERENCES, Difference, MODES};

/// The ids in the first columns of the document's tables that have such.
fn documented() -> Vec<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/divergence.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tables = text.split("\n| id |").skip(1);
    let ids = |table: &str| -> BTreeSet<String> {
        let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| ")?.split_once(" |"));
        rows.map(|(id, _)| id.to_owned()).collect()
    };
    tables.map(ids).collect()
}

pub(crate) fn every_announced_difference_is_documented_and_no_other() {
    let ids = |table: &[Difference]| -> BTreeSet<String> {
        table.iter().map(|difference| difference.id.to_owned()).collect()
    };
    let tables = [ids(DIFFERENCES), ids(MODES)];
    let all: BTreeSet<&String> = tables.iter().flatten().collect();
    assert_eq!(all.len(), DIFFERENCES.len() + MODES.len(), "an id is there twice");
    assert_eq!(documented(), tables, "left: docs/divergence.md, right: DIFFERENCES and MODES");
}
