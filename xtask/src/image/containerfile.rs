//! Reads of the Containerfile what an image's configuration says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What the instructions say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Instructions {
    /// Where `COPY` puts the program: an absolute path.
    pub(super) program: String,
    user: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    labels: BTreeMap<String, String>,
}

impl Instructions {
    /// Reads the few instructions that our file has, one a line. Another one is an error: the image would lack it.
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut this = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (instruction, rest) = line.split_once(' ').with_context(|| format!("Containerfile: {line}"))?;
            let list = || serde_json::from_str(rest).with_context(|| format!("Containerfile: {line}: not a JSON list"));
            match (instruction, rest) {
                ("FROM", "scratch") | ("ARG", "TARGETARCH") => {}
                ("COPY", _) => {
                    let path = rest.strip_prefix("${TARGETARCH}/lb-agent ").filter(|path| path.starts_with('/'));
                    path.with_context(|| format!("Containerfile: {line}"))?.clone_into(&mut this.program);
                }
                ("USER", user) => user.clone_into(&mut this.user),
                ("ENTRYPOINT", _) => this.entrypoint = list()?,
                ("CMD", _) => this.command = list()?,
                ("LABEL", _) => {
                    let (name, value) = rest.split_once('=').with_context(|| format!("Containerfile: {line}"))?;
                    this.labels.insert(name.to_owned(), value.trim_matches('"').to_owned());
                }
                _ => bail!("Containerfile: `cargo xtask image` does not know how to do {line:?}"),
            }
        }
        Ok(this)
    }

    /// The part `config` of an image's configuration, with more labels.
    pub(super) fn config(&self, labels: &[(&str, &str)]) -> Value {
        let Self { program: _, user, entrypoint, command, labels: own } = self;
        let mut all = own.clone();
        all.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        json!({ "User": user, "Entrypoint": entrypoint, "Cmd": command, "Labels": all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_starts_the_agent_as_root_in_nothing() {
        let ours = Instructions::read(include_str!("../../../Containerfile")).unwrap();
        assert_eq!(ours.program, "/lb-agent");
        let config = ours.config(&[("a", "b")]);
        assert_eq!(config["Entrypoint"], json!(["/lb-agent"]));
        assert_eq!((&config["Cmd"], &config["User"]), (&json!(["run"]), &json!("0:0")));
        assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
        assert_eq!(config["Labels"]["a"], "b");
    }

    #[test]
    fn an_instruction_that_would_be_lost_is_refused() {
        for text in ["RUN true", "FROM debian", "ENV A=b", "COPY lb-agent /lb-agent", "CMD run"] {
            let error = Instructions::read(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
