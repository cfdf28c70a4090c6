use std::io::{BufWriter, StdoutLock, Write};

use anyhow::Result;
use serde::Serialize;

use super::{API_VERSION, Format, ListOutputArguments};

/// Rows that are held to find the width of the columns. Later ones go by it, or widen it from there on.
const ROWS: usize = 1000;
/// Between two columns.
const GAP: &str = "   ";

/// A column of a table.
pub(in crate::cli) struct Column<T> {
    header: &'static str,
    is_wide: bool,
    text: fn(&T) -> String,
}

impl<T> Column<T> {
    /// One that is always there.
    pub(in crate::cli) const fn new(header: &'static str, text: fn(&T) -> String) -> Self {
        Self { header, is_wide: false, text }
    }

    /// One of `-o wide`.
    pub(in crate::cli) const fn wide(header: &'static str, text: fn(&T) -> String) -> Self {
        Self { header, is_wide: true, text }
    }
}

/// A list that is being printed.
pub(in crate::cli) struct List<T: 'static, W: Write = StdoutLock<'static>> {
    out: BufWriter<W>,
    format: Format,
    columns: Vec<&'static Column<T>>,
    rows: Vec<Vec<String>>,
    widths: Vec<usize>,
    is_empty: bool,
}

impl<T: Serialize, W: Write> List<T, W> {
    pub(super) fn begin(
        out: W,
        arguments: &ListOutputArguments,
        kind: &'static str,
        columns: &'static [Column<T>],
    ) -> Result<Self> {
        let ListOutputArguments { output, no_headers } = arguments;
        let format = output.output;
        let columns: Vec<_> = columns.iter().filter(|column| !column.is_wide || format == Format::Wide).collect();
        let header = columns.iter().map(|column| column.header.to_owned()).collect();
        let rows = if output.is_table() && !no_headers { vec![header] } else { Vec::new() };
        let mut out = BufWriter::new(out);
        match format {
            Format::Table | Format::Wide => {}
            Format::Json => {
                write!(out, "{{\n  \"apiVersion\": \"{API_VERSION}\",\n  \"kind\": \"{kind}\",\n  \"items\": [")?;
            }
            Format::Yaml => write!(out, "apiVersion: {API_VERSION}\nkind: {kind}\nitems:")?,
        }
        Ok(Self { out, format, columns, rows, widths: Vec::new(), is_empty: true })
    }

    /// Prints an item, or holds its row until the widths are known.
    pub(in crate::cli) fn push(&mut self, item: &T) -> Result<()> {
        match self.format {
            Format::Table | Format::Wide => {
                self.rows.push(self.columns.iter().map(|column| (column.text)(item)).collect());
                if self.rows.len() >= ROWS {
                    self.print_rows()?;
                }
            }
            Format::Json => {
                let separator = if self.is_empty { "\n" } else { ",\n" };
                let item = serde_json::to_string_pretty(item)?;
                write!(self.out, "{separator}    {}", item.replace('\n', "\n    "))?;
            }
            Format::Yaml => {
                let item = serde_saphyr::to_string(&[item])?;
                write!(self.out, "\n{}", item.trim_end())?;
            }
        }
        self.is_empty = false;
        Ok(())
    }

    pub(super) fn end(mut self) -> Result<()> {
        match self.format {
            Format::Table | Format::Wide if self.is_empty => {
                eprintln!("No resources found.");
            }
            Format::Table | Format::Wide => self.print_rows()?,
            Format::Json if self.is_empty => writeln!(self.out, "]\n}}")?,
            Format::Json => writeln!(self.out, "\n  ]\n}}")?,
            Format::Yaml if self.is_empty => writeln!(self.out, " []")?,
            Format::Yaml => writeln!(self.out)?,
        }
        Ok(self.out.flush()?)
    }

    fn print_rows(&mut self) -> Result<()> {
        for line in aligned(&self.rows, &mut self.widths) {
            writeln!(self.out, "{line}")?;
        }
        self.rows.clear();
        Ok(())
    }
}

/// The rows as lines. Columns are as wide as `widths` say, or wider, which is noted there.
pub(super) fn aligned(rows: &[Vec<String>], widths: &mut Vec<usize>) -> Vec<String> {
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&*widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Item {
        name: String,
        sizes: Vec<u32>,
    }

    const COLUMNS: &[Column<Item>] = &[
        Column::new("NAME", |item| item.name.clone()),
        Column::new("SIZES", |item| item.sizes.len().to_string()),
        Column::wide("LAST", |item| item.sizes.last().map_or_else(String::new, ToString::to_string)),
    ];

    fn arguments(output: Format, no_headers: bool) -> ListOutputArguments {
        ListOutputArguments { output: super::super::OutputArguments { output }, no_headers }
    }

    fn printed(output: Format, no_headers: bool, items: &[Item]) -> String {
        let mut bytes = Vec::new();
        let mut list = List::begin(&mut bytes, &arguments(output, no_headers), "ItemList", COLUMNS).expect("memory");
        for item in items {
            list.push(item).expect("memory");
        }
        list.end().expect("memory");
        String::from_utf8(bytes).expect("text")
    }

    fn items() -> Vec<Item> {
        vec![
            Item { name: "a \"quoted\" name".to_owned(), sizes: vec![1, 20] },
            Item { name: "b".to_owned(), sizes: Vec::new() },
        ]
    }

    #[test]
    fn tables_are_aligned_and_end_without_spaces() {
        let expected = "NAME              SIZES\na \"quoted\" name   2\nb                 0\n";
        assert_eq!(printed(Format::Table, false, &items()), expected);
        let expected = "a \"quoted\" name   2   20\nb                 0\n";
        assert_eq!(printed(Format::Wide, true, &items()), expected);
        assert_eq!(printed(Format::Table, false, &[]), "");
    }

    #[test]
    fn what_is_written_piece_by_piece_is_one_document() {
        for items in [items(), Vec::new()] {
            let json = printed(Format::Json, false, &items);
            let read: serde_json::Value = serde_json::from_str(&json).expect(&json);
            let expected = serde_json::json!({ "apiVersion": "lb-agent/v1", "kind": "ItemList", "items": items });
            assert_eq!(read, expected);
            assert_eq!(json, format!("{}\n", serde_json::to_string_pretty(&sorted_last(&expected)).expect("JSON")));
            let yaml = printed(Format::Yaml, false, &items);
            assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).expect(&yaml), expected);
        }
    }

    /// Items last, whatever order the map keeps its keys in.
    fn sorted_last(value: &serde_json::Value) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Whole {
            api_version: serde_json::Value,
            kind: serde_json::Value,
            items: serde_json::Value,
        }
        Whole { api_version: value["apiVersion"].clone(), kind: value["kind"].clone(), items: value["items"].clone() }
    }

    #[test]
    fn a_long_table_is_printed_as_it_comes_and_keeps_its_columns() {
        let mut list = List::begin(Vec::new(), &arguments(Format::Table, false), "ItemList", COLUMNS).expect("memory");
        for number in 0..10 * ROWS {
            list.push(&Item { name: format!("item-{number:05}"), sizes: Vec::new() }).expect("memory");
            assert!(list.rows.len() < ROWS);
        }
        list.print_rows().expect("memory");
        let bytes = list.out.into_inner().expect("memory");
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(text.lines().count(), 1 + 10 * ROWS);
        assert!(text.lines().skip(1).all(|line| line.len() == "item-00000   0".len()));
    }
}
