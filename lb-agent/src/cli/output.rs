use std::io::{self, Write as _};

use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

/// How a list is printed.
#[derive(Debug, Args)]
pub(super) struct OutputArguments {
    /// For people, or for programs.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// A list for programs, in the form that kubectl gives lists.
#[derive(Debug, Serialize)]
struct List<'a, T> {
    items: &'a [T],
}

impl OutputArguments {
    /// Prints a list.
    pub(super) fn list<T: Serialize>(
        &self,
        items: &[T],
        header: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        self.print(&List { items }, || table(header, items.iter().map(row)))
    }

    /// Prints `value` for programs, or `text` for people.
    pub(super) fn print(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let printed = match self.output {
            Format::Table => text(),
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Yaml => serde_saphyr::to_string(value)?,
        };
        match writeln!(io::stdout().lock(), "{}", printed.trim_end()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}

/// A table as kubectl prints it: no borders, two spaces between columns.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
