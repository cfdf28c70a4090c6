//! What is made from the definition of the commands, and what must keep up with it.

use std::process::Command;

use aya::maps::{HashMap, MapData};
use lb_common::abi::{Affinity, AffinityKey, maps};
use serde_json::Value;

use super::{AGENT, enter, flows, lb_agent, map, now, pinned};
use crate::sandbox;

const DOCUMENT: &str = include_str!("../../../../docs/cli.md");

pub(crate) fn every_command_and_every_field_is_in_the_document() {
    sandbox::run(|sandbox| {
        let pins = pinned(sandbox, 64);
        enter(&mut flows(&pins), [192, 0, 2, 7], 40000, 5);
        let mut affinities: HashMap<MapData, AffinityKey<[u8; 4]>, Affinity> =
            map(&pins, maps::AFFINITY4).try_into().expect("a hash map");
        let key = AffinityKey { namespace: [0; 2], client: [192, 0, 2, 7], service: 3, list: 4 };
        affinities.insert(&key, &Affinity { backend: 5, generation: 2, last_used: now() }, 0).expect("written");
        for command in [
            "service list",
            "service show web",
            "backend list",
            "flow list",
            "affinity list",
            "flow flush --dry-run --all",
            "drops --all",
            "status",
            "explain node web",
            "preflight",
        ] {
            let name =
                command.split_whitespace().take_while(|word| !word.starts_with('-')).collect::<Vec<_>>().join(" ");
            let name = name.replace(" web", "").replace(" node", "");
            assert!(DOCUMENT.contains(&format!("`lb-agent {name}")), "lb-agent {name} is not in docs/cli.md");
            let output = lb_agent(sandbox, &format!("{command} -o json"));
            let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_documented(&name, &document);
        }
    });
}

/// That the document of this command, its kind and all fields are in `docs/cli.md`.
pub(super) fn assert_documented(command: &str, document: &Value) {
    let kind = document["kind"].as_str().expect("a kind");
    let described = format!("\n`{kind}` (`{command}`)");
    assert!(DOCUMENT.contains(&described), "no {described:?} in docs/cli.md");
    let mut fields = Vec::new();
    collect_fields(document, &mut fields);
    assert!(fields.len() >= 3, "{command}: {document}");
    for field in fields {
        assert!(DOCUMENT.contains(&format!("`{field}`")), "{command}: `{field}` is not in docs/cli.md");
    }
}

/// The names of all fields, but for `apiVersion`, whose value is documented with it.
fn collect_fields(value: &Value, fields: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object.iter().filter(|(name, _)| *name != "apiVersion") {
                fields.push(name.clone());
                collect_fields(value, fields);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_fields(value, fields)),
        _ => {}
    }
}

pub(crate) fn completions_and_manual_pages_know_every_command() {
    let printed = |arguments: &[&str]| {
        let output = Command::new(AGENT).args(arguments).output().expect("the agent");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completion", shell]);
        for word in ["affinity", "flush", "kubeconfig", "no-headers"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let line = format!(
        "source <({AGENT} completion bash); COMP_WORDS=(lb-agent flow fl); COMP_CWORD=2; _lb__agent lb-agent fl flow; \
         echo ${{COMPREPLY[@]}}"
    );
    let completed = Command::new("bash").args(["-c", &line]).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "flush\n", "{completed:?}");

    let page = printed(&["man", "flow", "flush"]);
    assert!(page.contains(".TH lb-agent-flow-flush 1") && page.contains("\\-\\-dry\\-run"), "{page}");
    let dir = tempfile::tempdir().expect("a directory");
    printed(&["man", "--dir", &dir.path().display().to_string()]);
    let mut pages: Vec<_> =
        std::fs::read_dir(dir.path()).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
    pages.sort();
    for page in ["lb-agent.1", "lb-agent-run.1", "lb-agent-service-show.1", "lb-agent-drops.1"] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    assert!(!pages.iter().any(|name| name.to_string_lossy().contains("help")), "{pages:?}");
    let unknown = Command::new(AGENT).args(["man", "flow", "flash"]).output().expect("the agent");
    assert_eq!(unknown.status.code(), Some(1));
}
