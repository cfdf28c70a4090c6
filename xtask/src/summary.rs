//! Adds up the closing lines of libtest and libtest-mimic, and keeps what they say of failed tests.

use std::{cmp::Ordering, fmt};

/// How much of what a failed test printed is kept, in lines.
const KEPT: usize = 40;

/// How many tests ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// What failed tests printed: after thousands of lines of others, or where a log keeps only its end, it is worth
/// saying again.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    lines: Vec<String>,
    /// Lines of the test whose output is being read; `None` outside of such output.
    of_this: Option<usize>,
}

impl Failures {
    /// Takes in a line of a test program: between `failures:` and its closing line, each failed test has a header, as
    /// `---- name ----` or `---- name stdout ----`, and what it printed; then come their names alone.
    pub(crate) fn add_line(&mut self, line: &str) {
        let line = line.trim_end();
        if line == "failures:" || line.starts_with("test result: ") {
            self.of_this = None;
        }
        if line.starts_with("---- ") && line.ends_with(" ----") {
            self.of_this = Some(0);
        }
        let Some(count) = &mut self.of_this else { return };
        *count += 1;
        match (*count).cmp(&KEPT) {
            Ordering::Less => self.lines.push(line.to_owned()),
            Ordering::Equal => self.lines.push("  (more above)".to_owned()),
            Ordering::Greater => {}
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Summary {
    /// Adds what `line` reports, when it is the closing line of a test program:
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`.
    /// Returns whether it is.
    pub(crate) fn add_line(&mut self, line: &str) -> bool {
        let Some((_verdict, counts)) = line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return false;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
        true
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed")?;
        if *skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 3 tests
test a ... ok
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s

test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 61.50s
";

    #[test]
    fn counts_of_several_test_programs_add_up() {
        let mut summary = Summary::default();
        let closing_lines = OUTPUT.lines().filter(|line| summary.add_line(line)).count();
        assert_eq!(closing_lines, 2);
        assert_eq!(summary, Summary { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn what_failed_tests_printed_is_kept_without_their_neighbours() {
        let long = "line\n".repeat(2 * KEPT);
        let output = format!(
            "test a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\nwrong\n\n---- b ----\n{long}\n\
             failures:\n    a\n    b\n\ntest result: FAILED. 0 passed; 2 failed\ntest c ... ok\n"
        );
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.add_line(line));
        let shown = failures.to_string();
        assert!(shown.starts_with("---- a stdout ----\nwrong\n\n---- b ----\nline\n"), "{shown}");
        assert!(shown.ends_with("line\n  (more above)\n"), "{shown}");
        assert_eq!(shown.lines().count(), 3 + KEPT);
    }

    #[test]
    fn a_test_that_prints_something_like_a_closing_line_is_not_counted() {
        let mut summary = Summary::default();
        for line in ["5 passed; 1 failed", "test result of mine: 3 passed", "expected test result: ok. 1 passed", ""] {
            assert!(!summary.add_line(line), "{line:?}");
        }
        assert_eq!(summary, Summary::default());
    }

    #[test]
    fn the_summary_names_skipped_tests_only_when_there_are_some() {
        assert_eq!(Summary { passed: 7, failed: 0, skipped: 0 }.to_string(), "7 passed, 0 failed");
        assert_eq!(Summary { passed: 7, failed: 2, skipped: 1 }.to_string(), "7 passed, 2 failed, 1 skipped");
    }
}
