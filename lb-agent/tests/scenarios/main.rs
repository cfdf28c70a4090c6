//! One file for each rule that kube-proxy keeps: Kubernetes objects in, the tables that they lead to out.
//!
//! A file of `rules/` is a comment that says the rule and where kube-proxy has it, and sections that begin with
//! `-- name --`:
//!
//! | section | what it does |
//! |---|---|
//! | `policy` | what the operator decided, `name: value` each line; before all others |
//! | `apply` | objects as YAML, created or replaced |
//! | `delete` | objects that go, `Kind name` each line |
//! | `tables` | what the maps must hold then |
//!
//! `LB_BLESS=1 cargo test -p lb-agent --test scenarios` writes what the maps hold into the files, to be read before it is
//! committed. Whatever a scenario does, the maps never contradict themselves, and an agent that starts again writes nothing.

mod file;
mod world;

use std::{fmt::Write as _, fs, path::Path};

use file::{Scenario, Section};
use world::World;

/// Fewer files than this are a lost directory, not a short list of rules.
const AT_LEAST: usize = 25;

#[test]
fn every_rule_leads_to_its_tables() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/rules");
    let bless = std::env::var_os("LB_BLESS").is_some();
    let mut paths: Vec<_> =
        fs::read_dir(&rules).expect("the rules").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= AT_LEAST, "only {} rules in {}", paths.len(), rules.display());
    let mut failures = String::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a text");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let scenario = Scenario::parse(&name, &text);
        let found = play(&name, &scenario);
        if found == scenario {
            continue;
        }
        if bless {
            fs::write(&path, found.to_string()).expect("written");
        } else {
            write!(failures, "\n{name}\n{}", scenario.difference(&found)).expect("a string");
        }
    }
    assert!(failures.is_empty(), "{failures}\nIf this is right: LB_BLESS=1 cargo test -p lb-agent --test scenarios");
}

/// The scenario with the tables that were found.
fn play(name: &str, scenario: &Scenario) -> Scenario {
    let policy = scenario.sections.iter().find(|section| section.name == "policy");
    let mut world = World::new(policy.map(|section| section.text.as_str()).unwrap_or_default());
    let mut found = scenario.clone();
    for Section { name: section, text, line } in &mut found.sections {
        let place = format!("{name}:{line}");
        match section.as_str() {
            "policy" => {}
            "apply" => world.apply(&place, text),
            "delete" => world.delete(&place, text),
            "tables" => *text = world.tables(&place),
            other => panic!("{place}: no such section: {other}"),
        }
    }
    found
}
