//! How commands print: tables for people, with kubectl's habits, and JSON or YAML for programs (`docs/cli.md` says what is in
//! each). A list is written as its items come, so that a table of a million flows is never held.

mod list;

pub(super) use list::{Column, List};

use std::io::{self, Write as _};

use anyhow::{Error, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

/// Version of what is printed for programs. Fields are added to it, and neither renamed nor given another meaning.
const API_VERSION: &str = "lb-agent/v1";

/// How something is printed.
#[derive(Debug, Args)]
pub(super) struct OutputArguments {
    /// `table` and `wide` are for people, `json` and `yaml` for programs.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
}

/// How a list is printed.
#[derive(Debug, Args)]
pub(super) struct ListOutputArguments {
    #[command(flatten)]
    output: OutputArguments,
    /// Leave out the line of column names.
    #[arg(long)]
    no_headers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns.
    Table,
    /// The same, and more columns.
    Wide,
    Json,
    Yaml,
}

/// A document for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, T> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

impl ListOutputArguments {
    /// Prints a list of `kind`, which `fill` pushes the items of.
    pub(super) fn list<T: Serialize>(
        &self,
        kind: &'static str,
        columns: &'static [Column<T>],
        fill: impl FnOnce(&mut List<T>) -> Result<()>,
    ) -> Result<()> {
        let printed = List::begin(io::stdout().lock(), self, kind, columns).and_then(|mut list| {
            fill(&mut list)?;
            list.end()
        });
        unless_enough(printed).map(drop)
    }
}

impl OutputArguments {
    /// Prints `value` for programs, or `text` for people.
    pub(super) fn print(
        &self,
        kind: &'static str,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        let document = Document { api_version: API_VERSION, kind, value };
        let printed = match self.output {
            Format::Table | Format::Wide => text(),
            Format::Json => serde_json::to_string_pretty(&document)?,
            Format::Yaml => serde_saphyr::to_string(&document)?,
        };
        unless_enough(writeln!(io::stdout().lock(), "{}", printed.trim_end()).map_err(Error::from)).map(drop)
    }

    /// Prints one of a row of values that come with time: a line of a table or of JSON, or a YAML document. Whoever reads
    /// has seen enough when this is false.
    pub(super) fn event(
        &self,
        kind: &'static str,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<bool> {
        let document = Document { api_version: API_VERSION, kind, value };
        let printed = match self.output {
            Format::Table | Format::Wide => text(),
            Format::Json => serde_json::to_string(&document)?,
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(&document)?.trim_end()),
        };
        let mut out = io::stdout().lock();
        unless_enough(writeln!(out, "{printed}").and_then(|()| out.flush()).map_err(Error::from))
    }

    /// Whether it is for people.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.output, Format::Table | Format::Wide)
    }
}

/// Prints a line of a table. Whoever reads has seen enough when this is false.
pub(super) fn line(text: &str) -> Result<bool> {
    unless_enough(writeln!(io::stdout().lock(), "{text}").map_err(Error::from))
}

/// False if whoever reads has seen enough and is gone.
fn unless_enough(printed: Result<()>) -> Result<bool> {
    match printed {
        Ok(()) => Ok(true),
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A table as kubectl prints it.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut widths = Vec::new();
    let header = header.iter().map(ToString::to_string).collect();
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    list::aligned(&rows, &mut widths).join("\n")
}
