use std::fmt;

/// A file of `rules/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    comment: String,
    pub(crate) sections: Vec<Section>,
}

/// What follows a line `-- name --`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) text: String,
    /// Line of its heading.
    pub(crate) line: usize,
}

impl Scenario {
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let mut scenario = Self { comment: String::new(), sections: Vec::new() };
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(heading) = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
                let section = Section { name: heading.to_owned(), text: String::new(), line: number };
                scenario.sections.push(section);
                continue;
            }
            let text = scenario.sections.last_mut().map_or(&mut scenario.comment, |section| &mut section.text);
            text.push_str(line);
            text.push('\n');
        }
        let has = |name: &str| scenario.sections.iter().any(|section| section.name == name);
        assert!(scenario.comment.starts_with("# "), "{name} does not begin with the rule");
        // Where kube-proxy has the rule, or where we have what it does not.
        let sources = ["pkg/proxy", "cmd/kube-proxy", "lb-common/src"];
        assert!(sources.iter().any(|source| scenario.comment.contains(source)), "{name}: no source");
        assert!(has("apply") && has("tables"), "{name} has nothing to apply, or no tables");
        scenario
    }

    /// The lines of each section that differ.
    pub(crate) fn difference(&self, found: &Self) -> String {
        let differing = self.sections.iter().zip(&found.sections).filter(|(expected, found)| expected != found);
        differing.map(|(expected, found)| lines_that_differ(expected, &found.text)).collect()
    }
}

fn lines_that_differ(expected: &Section, found: &str) -> String {
    let missing = expected.text.lines().filter(|line| !found.lines().any(|other| other == *line));
    let extra = found.lines().filter(|line| !expected.text.lines().any(|other| other == *line));
    let lines: String =
        missing.map(|line| format!("  - {line}\n")).chain(extra.map(|line| format!("  + {line}\n"))).collect();
    let order = if lines.is_empty() { "  the same lines in another order\n" } else { "" };
    format!(" line {}:\n{lines}{order}", expected.line)
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.comment)?;
        self.sections.iter().try_for_each(|section| write!(f, "-- {} --\n{}", section.name, section.text))
    }
}
