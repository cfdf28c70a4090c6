//! The document: a section for each part, and those parts stay as they were that were not measured this time.

use std::{env, fs, process::Command};

use anyhow::Result;

/// What stands before the sections.
const HEAD: &str = "# Performance\n\n\
    Written by `cargo xtask bench`, each section when it was measured last. Medians; the middle half of all rounds in parentheses. \
    Everything in a table is measured in turns. Compare ratios: other machines have other nanoseconds.\n";

/// A section from its heading on. Its heading begins with `## `, and no other line of it does.
pub struct Section(pub String);

impl Section {
    fn heading(&self) -> &str {
        self.0.lines().next().unwrap_or_default()
    }
}

/// The document with these sections in the place of those of the same headings, others as they are. New ones are last.
pub fn merged(existing: &str, new: Vec<Section>) -> String {
    let mut sections: Vec<Section> = Vec::new();
    for line in existing.lines() {
        if line.starts_with("## ") {
            sections.push(Section(String::new()));
        }
        // What is before the first section is written anew.
        if let Some(section) = sections.last_mut() {
            section.0 += line;
            section.0.push('\n');
        }
    }
    for section in new {
        match sections.iter_mut().find(|other| other.heading() == section.heading()) {
            Some(other) => *other = section,
            None => sections.push(section),
        }
    }
    let sections = sections.iter().map(|section| format!("\n{}\n", section.0.trim_end()));
    [HEAD.to_owned()].into_iter().chain(sections).collect()
}

/// When and on what a section was measured.
pub fn measured() -> Result<String> {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // Of `5.18.0-3-cloud-amd64` only the version: the rest names a machine's build.
    let kernel = version.split(['-', '\n']).next().unwrap_or_default();
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    Ok(format!("Measured on {date}, Linux {kernel}, {}.", env::consts::ARCH))
}
