//! `docs/divergence.md` and the table of the harness are one list.

use std::{collections::BTreeSet, fs, path::Path};

use lb_tests::differential::divergence::DIFFERENCES;

/// The ids in the first column of the document's first table.
fn documented() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/divergence.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let rows = text.lines().skip_while(|line| !line.starts_with("| id |")).skip(2);
    let ids = rows.map_while(|line| line.strip_prefix("| ")?.split_once(" |").map(|(id, _)| id.to_owned()));
    ids.collect()
}

pub(crate) fn every_announced_difference_is_documented_and_no_other() {
    let table: BTreeSet<String> = DIFFERENCES.iter().map(|difference| difference.id.to_owned()).collect();
    assert_eq!(table.len(), DIFFERENCES.len(), "an id is there twice");
    assert_eq!(documented(), table, "left: docs/divergence.md, right: DIFFERENCES");
}
