//! `lb-agent`: see `lb-agent --help`.
fn main() {}
