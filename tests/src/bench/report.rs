//! Medians with their spread, and the tables that show them.

use std::fmt::Write as _;

use serde::Serialize;

/// Repeated measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Samples {
    /// What was measured.
    pub name: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// In the order of measuring.
    pub values: Vec<f64>,
}

impl Samples {
    /// None yet.
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, values: Vec::new() }
    }

    /// The value that a share (0 to 1) of all values does not exceed.
    ///
    /// # Panics
    /// Without values.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index among few values"
    )]
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let index = ((sorted.len() - 1) as f64 * share).round() as usize;
        *sorted.get(index).expect("at least one value")
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Median and the middle half, for people.
    pub fn summary(&self) -> String {
        let digits = if self.median() < 10.0 { 2 } else { 0 };
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median(), self.quantile(0.25), self.quantile(0.75))
    }
}

/// A table of Markdown that can be read as it is, too.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "| {} |", padded.join(" | "));
    };
    line(&mut head.iter().copied());
    let rules: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
    line(&mut rules.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}
