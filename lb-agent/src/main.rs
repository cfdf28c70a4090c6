//! `lb-agent`: see `lb-agent --help`.

mod burst;
mod cli;
mod health;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
